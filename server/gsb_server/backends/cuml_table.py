# SPDX-License-Identifier: BSD-3-Clause
"""Which estimators cuML offers in a form that can be given back as scikit-learn's own.

cuML has more classes than these. The others (naive Bayes, random projections, most encoders, Lars, agglomerative
clustering) cannot be turned into fitted scikit-learn estimators, so that a client could neither pickle them nor go on
without a server; they are left to the next backend. scikit-learn's scalers and polynomial features run on the device in
scikit-learn's own code: that is the array_api backend.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["ROWS", "Row"]


@dataclass(frozen=True, slots=True)
class Row:
    """One estimator.

    Attributes
    ----------
    supervised : bool
        Whether ``y`` is used at all.
    reads : str
        Whether cuML only reads X: "any" array, one in "c_order" (which it transposes into an array of its own), or ""
        if it may write. PCA centres X in place and adds the mean back, which is not the same bytes.
    cheap, large, opaque : tuple of str
        For models whose conversion to scikit-learn is dear: the attributes that are small, those that are arrays, and
        all others. Empty: everything is converted after a fit.
    constants : mapping
        Attributes that the conversion sets to one value always.
    note : str
        For the documentation: what is left to the CPU beside what cuML itself refuses.
    """

    supervised: bool = False
    reads: Literal["", "any", "c_order"] = ""
    cheap: tuple[str, ...] = ()
    constants: Mapping[str, Any] = field(default_factory=dict)
    large: tuple[str, ...] = ()
    opaque: tuple[str, ...] = ()
    note: str = ""

    @property
    def deferred(self) -> bool:
        """Whether attributes are converted when they are asked for."""
        return bool(self.large or self.opaque)


_NEIGHBORS = ("n_features_in_", "n_samples_fit_", "effective_metric_", "effective_metric_params_")
_BRUTE = {"_fit_method": "brute", "_tree": None}
_FOREST = ("n_features_in_", "n_outputs_", "_n_samples", "_n_samples_bootstrap", "oob_score_")

#: Public name -> row.
ROWS: dict[str, Row] = {
    "sklearn.cluster.DBSCAN": Row(
        reads="any",
        cheap=("n_features_in_",),
        large=("components_", "core_sample_indices_", "labels_"),
        note="algorithms other than auto and brute; metrics other than euclidean, l2, cosine, precomputed",
    ),
    "sklearn.cluster.HDBSCAN": Row(
        cheap=("n_features_in_",),
        large=("_raw_data", "labels_", "probabilities_"),
        opaque=("_single_linkage_tree_", "_min_samples", "_metric_params"),
        note="metrics other than euclidean; metric_params; store_centers; NaN",
    ),
    "sklearn.cluster.KMeans": Row(reads="any", note="callable init"),
    "sklearn.cluster.SpectralClustering": Row(
        note="affinity rbf, which is the default; assign_labels other than kmeans"
    ),
    "sklearn.covariance.EmpiricalCovariance": Row(),
    "sklearn.covariance.LedoitWolf": Row(),
    "sklearn.decomposition.IncrementalPCA": Row(),
    "sklearn.decomposition.PCA": Row(reads="c_order", note="n_components 0 or mle"),
    "sklearn.decomposition.TruncatedSVD": Row(reads="c_order"),
    "sklearn.ensemble.IsolationForest": Row(
        cheap=("n_features_in_",),
        opaque=(
            "estimator_",
            "estimators_",
            "estimators_features_",
            "max_samples_",
            "offset_",
            "_max_features",
            "_max_samples",
            "_sample_weight",
            "_average_path_length_per_tree",
            "_decision_path_lengths",
        ),
        note="warm_start; sample_weight; NaN",
    ),
    "sklearn.ensemble.RandomForestClassifier": Row(
        supervised=True,
        cheap=(*_FOREST, "classes_", "n_classes_"),
        large=("oob_decision_function_",),
        opaque=("estimator_", "estimators_"),
        note="criterion log_loss; warm_start; monotonic_cst; ccp_alpha; min_weight_fraction_leaf; int max_samples; "
        "class_weight balanced_subsample; NaN; "
        "several targets",
    ),
    "sklearn.ensemble.RandomForestRegressor": Row(
        supervised=True,
        cheap=_FOREST,
        large=("oob_prediction_",),
        opaque=("estimator_", "estimators_"),
        note="criterion absolute_error; warm_start; monotonic_cst; ccp_alpha; min_weight_fraction_leaf; "
        "int max_samples; NaN; several targets",
    ),
    "sklearn.kernel_ridge.KernelRidge": Row(
        supervised=True, cheap=("n_features_in_",), large=("X_fit_", "dual_coef_"), note="callable kernels"
    ),
    "sklearn.linear_model.ElasticNet": Row(
        supervised=True, note="positive; warm_start; precompute; several targets; `dual_gap_` is absent"
    ),
    "sklearn.linear_model.Lasso": Row(
        supervised=True, note="positive; warm_start; precompute; several targets; `dual_gap_` is absent"
    ),
    "sklearn.linear_model.LinearRegression": Row(supervised=True, note="positive; `rank_` and `singular_` are absent"),
    "sklearn.linear_model.LogisticRegression": Row(supervised=True, note="warm_start; intercept_scaling"),
    "sklearn.linear_model.Ridge": Row(supervised=True, note="positive; solver lbfgs"),
    "sklearn.manifold.SpectralEmbedding": Row(note="affinities other than nearest_neighbors and precomputed"),
    "sklearn.manifold.TSNE": Row(note="n_components other than 2; init arrays"),
    "sklearn.neighbors.KernelDensity": Row(
        reads="any", cheap=("n_features_in_", "bandwidth_"), opaque=("tree_",), note="metrics that cuML lacks"
    ),
    "sklearn.neighbors.KNeighborsClassifier": Row(
        supervised=True,
        reads="any",
        cheap=(*_NEIGHBORS, "classes_", "outputs_2d_"),
        constants=_BRUTE,
        large=("_fit_X", "_y"),
        note="callable weights and metrics",
    ),
    "sklearn.neighbors.KNeighborsRegressor": Row(
        supervised=True,
        reads="any",
        cheap=_NEIGHBORS,
        constants=_BRUTE,
        large=("_fit_X", "_y"),
        note="callable weights and metrics",
    ),
    "sklearn.neighbors.NearestNeighbors": Row(
        reads="any", cheap=_NEIGHBORS, constants=_BRUTE, large=("_fit_X",), note="callable metrics; radius_neighbors"
    ),
    "sklearn.preprocessing.LabelBinarizer": Row(),
    "sklearn.preprocessing.LabelEncoder": Row(),
    "sklearn.preprocessing.OneHotEncoder": Row(note="drop if_binary; min_frequency; integer dtype"),
    "sklearn.preprocessing.TargetEncoder": Row(
        supervised=True, note="categories other than auto; random states other than None and integers; several classes"
    ),
    "sklearn.svm.LinearSVC": Row(supervised=True, note="intercept_scaling; multi_class crammer_singer"),
    "sklearn.svm.LinearSVR": Row(supervised=True, note="intercept_scaling"),
    "sklearn.svm.SVC": Row(supervised=True, note="more than two classes; probability; callable kernels"),
    "sklearn.svm.SVR": Row(supervised=True, note="callable kernels"),
}

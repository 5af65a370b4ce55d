# SPDX-License-Identifier: BSD-3-Clause
"""Too little memory under the pool: an error that says what to do, nothing lost, and never a SIGBUS."""

from __future__ import annotations

from pathlib import Path

from helpers.kernel import MOUNT_NAMESPACE, need
from helpers.processes import Children

# Each text runs in a mount namespace of its own with a fresh tmpfs of the size it asks for; both go with the process.
_MOUNT = """
import ctypes, errno
sys.path.append(args[0])
from helpers.pools import SLOT, check_progress, check_stamped, small, stamped
where, size = args[1], args[2]
libc = ctypes.CDLL(None, use_errno=True)
def mount(options, flags=0):
    if libc.mount(b"shmpool-test", where.encode(), b"tmpfs", flags, options.encode()) != 0:
        raise OSError(ctypes.get_errno(), "mount")
mount(size)
path = where + "/pool.bin"
def free_nbytes():
    stat = os.statvfs(where)
    return stat.f_bavail * stat.f_frsize
def refused(work):
    try:
        work()
    except shmpool.PoolSpaceError as error:
        assert error.needed > error.available >= 0, (error.needed, error.available)
        assert error.hint and "available" in str(error), error
        return error
    raise AssertionError("there should have been no room")
"""


def run(children: Children, folder: Path, size: str, text: str) -> None:
    """Run a text on a tmpfs that is mounted with the options `size` and that nobody else sees."""
    tests = Path(__file__).resolve().parents[1]
    child = children.start(_MOUNT + text, tests, folder, size, prefix=need(MOUNT_NAMESPACE))
    child.finish()


def test_default_pool_in_a_container_of_64_mb(pool_dir: Path, children: Children) -> None:
    run(
        children,
        pool_dir,
        "size=64m",
        """
pool = shmpool.Pool.open(path)      # 4 GiB of slots, prefaulting as always
assert pool.nbytes == 4 << 30
kept = [(pool.put(stamped(k, 100_000)), k) for k in range(3)]
error = refused(lambda: pool.put(np.zeros(200 << 20, "u1")))
assert error.needed >= 100 << 20 and error.errno == errno.ENOSPC and "--shm-size" in error.hint
for round in range(20):             # refused again and again: nothing may leak
    refused(lambda: pool.put(np.zeros(200 << 20, "u1"), "output"))
    refused(lambda: pool.loan((100 << 20,), "u1", region="scratch"))
pool.free(pool.put(np.ones(20 << 20, "u1"), "output"))      # what fits, fits
for handle, seed in kept:
    check_stamped(pool.get(handle), seed)
    pool.free(handle)
assert pool.stat().used_slots == 0
pool.free(pool.put(stamped(5)))
pool.close()
""",
    )


def test_several_clients_fill_the_file_system(pool_dir: Path, children: Children) -> None:
    run(
        children,
        pool_dir,
        "size=16m",
        """
a, b = (shmpool.Pool.open(path, slot_nbytes=8 << 20, prefault_nbytes=0) for _ in range(2))
kept, seed = [], 0
try:
    while True:
        for pool in (a, b):
            kept.append((pool.put(stamped(seed, 3 << 20), "scratch"), seed))
            seed += 1
except shmpool.PoolSpaceError:
    pass
assert len(kept) >= 3
for handle, seed in kept:
    for pool in (a, b):
        check_stamped(pool.get(handle), seed)
a.close()
assert b.stat().used_slots == len([h for h, s in kept if s % 2])
""",
    )


def test_slots_that_have_memory_work_on_a_full_file_system(pool_dir: Path, children: Children) -> None:
    run(
        children,
        pool_dir,
        "size=16m",
        """
pool = small(path)
check_progress(pool)        # every slot has its memory now
with open(where + "/other.bin", "wb", buffering=0) as other:
    try:
        while True:
            other.write(bytes(65536))
    except OSError as error:
        assert error.errno == errno.ENOSPC
assert free_nbytes() < 65536
check_progress(pool, 100)
other = small(path)
check_progress(other, 200)
""",
    )


def test_a_small_array_needs_a_small_room(pool_dir: Path, children: Children) -> None:
    run(
        children,
        pool_dir,
        "size=1m",
        """
pool = shmpool.Pool.open(path, prefault_nbytes=0)
assert 4096 < free_nbytes() < 2 << 20       # less than the step in which memory is reserved when there is enough
handle = pool.put(stamped(1))
check_stamped(pool.get(handle), 1)
error = refused(lambda: pool.put(stamped(2, 1 << 20)))
assert error.needed <= (1 << 20) + 4096, error.needed
""",
    )


def test_a_span_that_finds_no_memory_gives_back_what_it_took(pool_dir: Path, children: Children) -> None:
    run(
        children,
        pool_dir,
        "size=16m",
        """
pool = shmpool.Pool.open(path, slot_nbytes=1 << 20, input_slots=40, prefault_nbytes=0)
kept = pool.put(stamped(1, 1 << 20))
before = free_nbytes()
error = refused(lambda: pool.put(np.zeros(30 << 20, "u1")))
assert error.needed > 10 << 20, error.needed
assert free_nbytes() == before
assert pool.stat().used_slots == 1
pool.free(pool.put(stamped(2), "output"))
check_stamped(pool.get(kept), 1)
""",
    )


def test_no_memory_for_the_header(pool_dir: Path, children: Children) -> None:
    run(
        children,
        pool_dir,
        "size=64k",
        """
refused(lambda: shmpool.Pool.open(path))
try:
    shmpool.Pool.attach(path)
except shmpool.PoolNotFoundError:
    pass
else:
    raise AssertionError("there is no pool")
os.close(os.open(where + "/fill.bin", os.O_CREAT | os.O_WRONLY))
with open(where + "/fill.bin", "wb", buffering=0) as fill:      # to the last byte
    try:
        while True:
            fill.write(bytes(4096))
    except OSError:
        pass
assert free_nbytes() == 0
refused(lambda: shmpool.Pool.open(path))
mount("size=16m", 32)       # MS_REMOUNT
os.unlink(where + "/fill.bin")
with small(path) as pool:           # nothing in the way when there is room again
    check_progress(pool)
""",
    )


def test_no_inodes(pool_dir: Path, children: Children) -> None:
    run(
        children,
        pool_dir,
        "size=16m,nr_inodes=1",
        """
try:
    small(path)
except shmpool.PoolSpaceError as error:
    assert error.errno == errno.ENOSPC and error.hint
else:
    raise AssertionError("there should have been no room")
""",
    )


def test_read_only_file_system(pool_dir: Path, children: Children) -> None:
    run(
        children,
        pool_dir,
        "size=16m",
        """
small(path).close()
mount("", 32 | 1)       # MS_REMOUNT | MS_RDONLY
for use in (lambda: small(path), lambda: shmpool.Pool.attach(path)):
    try:
        use()
    except shmpool.ShmPoolError as error:
        assert isinstance(error, OSError) and path in str(error)
    else:
        raise AssertionError("the file system is read-only")
""",
    )


def test_file_size_limit(pool_path: Path, children: Children) -> None:
    children.start(
        """
import resource, signal
assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN       # Python's doing, which the library may rely on
for limit in (1 << 20, 4096, 0):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        shmpool.Pool.open(args[0], prefault_nbytes=0)
    except shmpool.PoolSpaceError as error:
        assert "ulimit" in error.hint, error
    else:
        raise AssertionError("4 GiB are over the limit")
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
with shmpool.Pool.open(args[0], slot_nbytes=1 << 20, prefault_nbytes=0) as pool:
    # A limit that comes later does not reach a file that has its size.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, resource.RLIM_INFINITY))
    pool.free(pool.put(np.ones(2_000_000, "u1")))
""",
        pool_path,
    ).finish()


def test_death_while_memory_is_short(pool_dir: Path, children: Children) -> None:
    run(
        children,
        pool_dir,
        "size=8m",
        """
import random, signal
random.seed(1)
pool = shmpool.Pool.open(path, slot_nbytes=1 << 20, prefault_nbytes=0)
kept = pool.put(stamped(1, 500_000))
for k in range(15):
    pid = os.fork()
    if pid == 0:
        pool.reattach()
        while True:
            try:
                handle = pool.put(np.ones(random.randrange(1, 6 << 20), "u1"), "scratch", 5)
                assert pool.get(handle).all()
                pool.free(handle)
            except shmpool.PoolSpaceError:
                pass
    time.sleep(0.03 * random.random())
    assert os.waitpid(pid, os.WNOHANG) == (0, 0), "it ended by itself"
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
pool.reclaim()
assert pool.stat().used_slots == 1
check_stamped(pool.get(kept), 1)
""",
    )

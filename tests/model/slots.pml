/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The life of a slot, as docs/format.md describes it, for Spin. docs/model.md says what is modelled,
 * what is left out, which configurations are checked and what each mutation (MUT_*) is for.
 *
 * How to read it. One `option` of an `if` or `do` is one atomic access to the shared memory (or one
 * kernel lock call) together with the private arithmetic around it; between two of them anybody may
 * run, and CRASH lets the process die there. At a death the kernel drops the byte locks; the shared
 * memory stays as it is. STOP halts a process for ever with its locks held. Nothing in the protocol
 * waits, so a process blocked anywhere but at a label `end...` is an error (invalid end state).
 *
 * Configuration, by -D:
 *   NS slots, NC client indices, NP processes, SPANS (claims of two adjacent slots exist)
 *   P0 .. P3: INIT of process p: attached index + 1 (0: a newcomer), operations, budget of operations
 *   HW0: client_high_water at the start
 *   MAXCRASH deaths and MAXSTOP stops in one run
 */

#ifndef MAXCRASH
#define MAXCRASH NP
#endif
#ifndef MAXSTOP
#define MAXSTOP 0
#endif

/* states of a slot, as in the format */
#define FREE 0
#define WRITING 1
#define SEALED 2
#define RETIRED 3
#define TAIL 4

/* what a process may do */
#define CLAIM1 1
#define CLAIM2 2
#define PIN 4
#define UNREF 8 /* free */
#define ADOPT 16
#define RECLAIM 32
#define ABORT 64
#define STOPPABLE 128

/* condition of a process */
#define RUN 0
#define REST 1
#define DEAD 2
#define STOPPED 3

/* ---- shared memory ---------------------------------------------------------------------------- */

byte gen[NS], own[NS], st[NS]; /* the word: always read and written as one */
byte pin[NS * NC];
byte nonce[NC];
byte hw = HW0; /* client_high_water */
#ifdef SPANS
byte lks[NS], lkg[NS], span[NS];
#endif
byte content[NS]; /* the bytes: DIRTY, or the tag of the claim that wrote them */

/* ---- kernel locks on byte 64 + i ---------------------------------------------------------------- */

byte xl[NC]; /* exclusive: process + 1 */
byte cl[NP]; /* shared: index + 1 that process p cleans */

/* ---- handing over: the handle last published ------------------------------------------------------ */

byte HS, HG;

/* ---- the environment and ghosts: nobody in the protocol reads these -------------------------------- */

byte run_[NP];
byte crashes, stops;
bool checked;
byte wr[NS];  /* process + 1 that believes it alone writes the slot */
byte gp[NP];  /* slot + 1 of the valid pin of process p */
byte ret[NS]; /* highest generation of the slot that was freed or retired */
bool att[NC]; /* the holder of index i has finished its attach */

/* The names of the invariants: constants 0, outside the state, so that Spin prints them. */
hidden byte NEVER_TWO_OWNERS, NEVER_PINNED_RECLAIMED, NO_TORN_READ, EVERY_DEAD_FREED;
hidden byte DOUBLE_FREE_DETECTED, NO_STRANDED_RETIRED, NEVER_EVICTED_ALIVE;
hidden byte z, zi;

/* Situations met, printed by the verifier the first time, so that a test can tell that a search that
 * found nothing wrong was at the places where something could go wrong. */
c_decl { static unsigned char met[64]; };
#define MET(n, what)                                                                               \
    c_code { if (!met[n]) { met[n] = 1; printf("met: %s\n", what); } }

#define DIRTY 255
#define TAG(s, g) ((g) * 4 + (s))
#define CELL(s, i) pin[(s) * NC + (i)]

#ifdef MUT_CAS_WITHOUT_GENERATION
#define IS(s, g, o, x) (own[s] == (o) && st[s] == (x))
#else
#define IS(s, g, o, x) (gen[s] == (g) && own[s] == (o) && st[s] == (x))
#endif
#define SET(s, g, o, x)                                                                            \
    gen[s] = g;                                                                                    \
    own[s] = o;                                                                                    \
    st[s] = x

#ifdef SPANS
#define COVERS(p, s)                                                                               \
    (gp[p] && (gp[p] == (s) + 1 || (gp[p] == (s) && (s) > 0 && span[gp[p] - 1] == 2)))
#else
#define COVERS(p, s) (gp[p] == (s) + 1)
#endif
#define CLEANS(p, i) (cl[p] == (i) + 1)
#if NP == 2
#define PINNED(s) (COVERS(0, s) || COVERS(1, s))
#define CLEANED(i) (CLEANS(0, i) || CLEANS(1, i))
#define ALL_AT_REST (run_[0] && run_[1])
#elif NP == 3
#define PINNED(s) (COVERS(0, s) || COVERS(1, s) || COVERS(2, s))
#define CLEANED(i) (CLEANS(0, i) || CLEANS(1, i) || CLEANS(2, i))
#define ALL_AT_REST (run_[0] && run_[1] && run_[2])
#else
#define PINNED(s) (COVERS(0, s) || COVERS(1, s) || COVERS(2, s) || COVERS(3, s))
#define CLEANED(i) (CLEANS(0, i) || CLEANS(1, i) || CLEANS(2, i) || CLEANS(3, i))
#define ALL_AT_REST (run_[0] && run_[1] && run_[2] && run_[3])
#endif

/* NEVER_TWO_OWNERS: nobody may take what a live process believes to hold for writing. */
#define OWN_ALONE(s) assert(wr[s] == 0 || NEVER_TWO_OWNERS)
#define MUST(c) assert((c) || NEVER_TWO_OWNERS)
/* NEVER_PINNED_RECLAIMED: a slot under a valid pin is not freed, not claimed, not written. */
#define NOT_PINNED(s) assert(!PINNED(s) || NEVER_PINNED_RECLAIMED)
/* NEVER_EVICTED_ALIVE: the fence does not trip for a client that kept its lock. */
#define FENCE assert(nonce[ix] == 1 || NEVER_EVICTED_ALIVE)

#define TO_FREE(s, g)                                                                              \
    NOT_PINNED(s);                                                                                 \
    SET(s, g, 0, FREE)

inline forget() /* private memory back to its first value, so that equal situations are one state */
{
    s = 0; g = 0; g2 = 0; sp = 0;
    fs = 0; fg = 0; fo = 0; j = 0; tg = 0; to_ = 0;
}

inline forget_all()
{
    forget();
    hs = 0; hg = 0; left = 0; rc = 0; ci = 0; rs = 0;
}

inline die()
{
    crashes++;
    run_[me] = DEAD;
    if
    :: xl[ix] == me + 1 -> xl[ix] = 0; att[ix] = 0
    :: else
    fi;
    cl[me] = 0;
    gp[me] = 0;
    z = 0;
    do
    :: z < NS ->
        if
        :: wr[z] == me + 1 -> wr[z] = 0
        :: else
        fi;
        z++
    :: else -> break
    od;
    forget_all();
    ix = 0;
    mask = 0
}

inline stop()
{
    stops++;
    run_[me] = STOPPED;
    forget_all()
}

#define CRASH                                                                                      \
    :: d_step { crashes < MAXCRASH -> die() }                                                      \
    goto end_dead;                                                                                 \
    :: d_step { stops < MAXSTOP && (mask & STOPPABLE) -> stop() }                                  \
    goto end_dead

#define OP(x) (rc == 0 && left > 0 && (mask & (x)))

/* claim, first access: position s is seen FREE; or RETIRED, and is offered to finalize */
#define CLAIM_AT(S)                                                                                \
    :: d_step {                                                                                    \
        OP(CLAIM1) && S < NS && st[S] == FREE -> left--; s = S; g = gen[S]; sp = 1; FENCE          \
    }                                                                                              \
    goto claim;                                                                                    \
    :: d_step {                                                                                    \
        OP(CLAIM2) && S + 1 < NS && st[S] == FREE -> left--; s = S; g = gen[S]; sp = 2; FENCE      \
    }                                                                                              \
    goto claim;                                                                                    \
    :: d_step {                                                                                    \
        OP(CLAIM1 | CLAIM2) && S < NS && st[S] == RETIRED ->                                       \
            left--; fs = S; fg = gen[S]; fo = own[S];                                              \
            MET(10, "claim offers RETIRED to finalize")                                            \
    }                                                                                              \
    goto finalize

#ifdef MUT_PIN_NO_GENERATION
#define PIN_HOLDS (st[hs] == SEALED)
#else
#define PIN_HOLDS (gen[hs] == hg && st[hs] == SEALED)
#endif

/* reclaim, step 1: the byte in shared mode, without waiting. Refused: the client lives. */
#if defined(MUT_CLEAN_WITHOUT_LOCK)
#define TAKE_SHARED(I) xl[I] == 0
#define HOLD(I) skip
#elif defined(MUT_CLEANER_EXCLUSIVE)
#define TAKE_SHARED(I) xl[I] == 0 && !CLEANED(I)
#define HOLD(I) cl[me] = I + 1
#else
#define TAKE_SHARED(I) xl[I] == 0
#define HOLD(I) cl[me] = I + 1
#endif
#define RECLAIM_AT(I)                                                                              \
    :: d_step {                                                                                    \
        OP(RECLAIM) && I < NC && I != ix && TAKE_SHARED(I) ->                                      \
            if                                                                                     \
            :: CLEANED(I) -> MET(9, "two cleaners of one client")                                  \
            :: else                                                                                \
            fi;                                                                                    \
            left--; HOLD(I); ci = I; rc = 1; rs = 0                                                \
    }                                                                                              \
    goto again

/* open, step 4: the byte in exclusive mode; whatever is there of an earlier client goes first */
#define ATTACH_AT(I)                                                                               \
    :: d_step { I < NC && xl[I] == 0 && !CLEANED(I) -> xl[I] = me + 1; ix = I; ci = I; rc = 1 }    \
    goto again

proctype client(byte me; byte ix; byte mask; byte left)
{
    byte hs, hg;               /* my handle; generation 0: none */
    byte s, g, g2, sp;         /* the claim under way */
    byte fs, fg, fo, j;        /* finalize: head, its generation and owner */
    byte tg, to_;              /* the word of a tail */
    byte rc, ci, rs;           /* reclaim: part (0: none is under way), client, slot */

    if
    :: ix > 0 -> ix = ix - 1
    :: else ->
        if
        ATTACH_AT(0);
        ATTACH_AT(1);
        ATTACH_AT(2);
        CRASH
        :: d_step { run_[me] = REST; forget_all() } goto rest /* all are taken: PoolFullError */
        fi
    fi;

again:
    if
    /* -- reclaim client ci ------------------------------------------------------------------- */
#ifdef MUT_NONCE_AFTER_UNLOCK
    :: d_step { rc == 1 -> rc = 2; rs = 0 } goto again
    :: d_step { rc == 7 -> nonce[ci] = 0; rc = 0; ci = 0 } goto again
#else
    :: d_step { rc == 1 -> nonce[ci] = 0; rc = 2; rs = 0 } goto again
#endif
#ifdef MUT_ZERO_ROW_AFTER_UNLOCK
    :: d_step { rc == 2 -> rc = 3 } goto again
#else
    :: d_step {
        rc == 2 ->
            CELL(rs, ci) = 0;
            rs++;
            if
            :: rs == NS -> rs = 0; rc = 3
            :: else
            fi
    } goto again
#endif
    :: d_step { rc == 3 && rs < NS && st[rs] == WRITING && own[rs] == ci + 1 -> tg = gen[rs] }
        if
        :: d_step {
            if
            :: IS(rs, tg, ci + 1, WRITING) ->
                OWN_ALONE(rs);
                TO_FREE(rs, tg);
                MET(0, "reclaim frees WRITING")
            :: else -> MET(1, "reclaim lost WRITING to another cleaner")
            fi;
            forget();
            rs++
        } goto again
        CRASH
        fi
    :: d_step { rc == 3 && rs < NS && st[rs] == SEALED && own[rs] == ci + 1 -> tg = gen[rs] }
        if
        :: d_step {
            IS(rs, tg, ci + 1, SEALED) ->
                SET(rs, tg, 0, RETIRED);
                ret[rs] = tg;
                fs = rs; fg = tg; fo = 0; tg = 0;
                MET(2, "reclaim retires SEALED");
                rs++
        } goto finalize
        :: d_step {
            !IS(rs, tg, ci + 1, SEALED) -> forget(); rs++; MET(3, "reclaim lost SEALED")
        } goto again
        CRASH
        fi
    :: d_step { rc == 3 && rs < NS && st[rs] == RETIRED -> fs = rs; fg = gen[rs]; fo = own[rs]; rs++ }
        goto finalize
#ifdef SPANS
    :: d_step { rc == 3 && rs < NS && st[rs] == TAIL && own[rs] == ci + 1 -> tg = gen[rs] }
        if
        :: d_step { s = lks[rs] }
            if
            :: d_step { g = lkg[rs] }
                if
#ifndef MUT_TAIL_NO_HEAD_CHECK
                :: d_step { /* the span is alive */
                    gen[s] == g && (st[s] == SEALED || st[s] == RETIRED) ->
                        if
                        :: xl[ci] == me + 1 -> MET(4, "newcomer leaves a TAIL of its index to its head")
                        :: else -> MET(5, "cleaner leaves a TAIL to its head")
                        fi;
                        forget();
                        rs++
                } goto again
                :: d_step {
                    !(gen[s] == g && (st[s] == SEALED || st[s] == RETIRED)) -> s = 0; g = 0
                }
#else
                :: d_step { s = 0; g = 0 }
#endif
                    if
                    :: d_step {
                        if
                        :: IS(rs, tg, ci + 1, TAIL) ->
                            OWN_ALONE(rs);
                            TO_FREE(rs, tg);
                            MET(6, "reclaim frees an orphan TAIL")
                        :: else -> MET(7, "reclaim lost a TAIL")
                        fi;
                        forget();
                        rs++
                    } goto again
                    CRASH
                    fi
                CRASH
                fi
            CRASH
            fi
        CRASH
        fi
#endif
    :: d_step {
        rc == 3 && rs < NS && st[rs] != RETIRED && (own[rs] != ci + 1 || st[rs] == FREE) -> rs++
    } goto again
    :: d_step { /* the end of reclaim: unlock; or of an attach: high_water, entry, nonce last */
        rc == 3 && rs == NS ->
            rs = 0;
            if
            :: xl[ci] == me + 1 && ix == ci -> rc = 5
            :: else ->
                cl[me] = 0;
#if defined(MUT_ZERO_ROW_AFTER_UNLOCK)
                rc = 4
#elif defined(MUT_NONCE_AFTER_UNLOCK)
                rc = 7
#else
                rc = 0; ci = 0
#endif
            fi
    } goto again
#ifdef MUT_ZERO_ROW_AFTER_UNLOCK
    :: d_step {
        rc == 4 ->
            CELL(rs, ci) = 0;
            rs++;
            if
            :: rs == NS -> rs = 0; rc = 0; ci = 0
            :: else
            fi
    } goto again
#endif
    :: d_step {
        rc == 5 ->
#ifndef MUT_NO_HIGH_WATER
            if
            :: hw < ci + 1 -> hw = ci + 1
            :: else
            fi;
#endif
            rc = 6
    } goto again
    :: d_step {
        rc == 6 -> nonce[ci] = 1; att[ci] = 1; rc = 0; ci = 0; MET(8, "newcomer attached")
    } goto again

    /* -- begin an operation --------------------------------------------------------------------- */
    CLAIM_AT(0);
    CLAIM_AT(1);
    CLAIM_AT(2);
    RECLAIM_AT(0);
    RECLAIM_AT(1);
    RECLAIM_AT(2);
    :: d_step { OP(PIN | UNREF | ADOPT) && HG && !(hs == HS && hg == HG) -> hs = HS; hg = HG }
        goto again
#ifdef MUT_PIN_NO_RECHECK /* looks at the word first and counts afterwards */
    :: d_step { OP(PIN) && hg && gen[hs] == hg && st[hs] == SEALED -> left-- }
        if
        :: d_step { CELL(hs, ix)++; gp[me] = hs + 1 } goto read
        CRASH
        fi
#else
    :: d_step { OP(PIN) && hg -> left--; FENCE; CELL(hs, ix)++ } goto pin_word
#endif
    :: d_step { OP(UNREF) && hg && !(gen[hs] == hg && st[hs] == SEALED) ->
        left--;
        assert(ret[hs] >= hg || DOUBLE_FREE_DETECTED);
        MET(11, "free refused: stale")
    } goto again
    :: d_step {
        OP(UNREF) && hg && gen[hs] == hg && st[hs] == SEALED ->
#ifdef MUT_HIGH_WATER_EARLY
            sp = hw;
#endif
#ifdef MUT_ROW_BEFORE_RETIRE
            j = 0;
            do
            :: j < NC && CELL(hs, j) == 0 -> j++
            :: else -> break
            od;
#endif
            left--;
            fo = own[hs]
    } goto free_cas
    :: d_step { OP(ADOPT) && hg && gen[hs] == hg && st[hs] == SEALED -> left--; FENCE; fo = own[hs] }
        if
        :: d_step {
            if
            :: IS(hs, hg, fo, SEALED) -> SET(hs, hg, ix + 1, SEALED); MET(12, "adopted")
            :: else -> MET(13, "adopt lost")
            fi;
            forget()
        } goto again
        CRASH
        fi
    :: d_step { rc == 0 -> run_[me] = REST; forget_all() } goto rest
    CRASH
    fi;

    /* -- claim sp slots from s; g is the generation seen ------------------------------------------- */
claim:
    if
    :: d_step {
        IS(s, g, 0, FREE) ->
            OWN_ALONE(s);
            NOT_PINNED(s);
            g++;
            SET(s, g, ix + 1, WRITING);
            wr[s] = me + 1
    }
    :: d_step { !IS(s, g, 0, FREE) -> forget(); MET(14, "claim lost") } goto again
    CRASH
    fi;
#ifdef SPANS
    if
    :: d_step { sp == 2 && st[s + 1] == FREE -> g2 = gen[s + 1] }
        if
        :: d_step {
            IS(s + 1, g2, 0, FREE) ->
                OWN_ALONE(s + 1);
                NOT_PINNED(s + 1);
                g2++;
                SET(s + 1, g2, ix + 1, WRITING);
                wr[s + 1] = me + 1
        }
            if
            :: d_step { lks[s + 1] = s }
                if
                :: d_step { lkg[s + 1] = g }
                    if
                    :: d_step {
                        MUST(IS(s + 1, g2, ix + 1, WRITING));
                        SET(s + 1, g2, ix + 1, TAIL)
                    }
                    CRASH
                    fi
                CRASH
                fi
            CRASH
            fi
        :: d_step { !IS(s + 1, g2, 0, FREE) -> g2 = 0; MET(15, "claim gives back a span") } goto give_back
        CRASH
        fi
    :: d_step { sp == 2 && st[s + 1] != FREE } goto give_back
    :: sp == 1
    CRASH
    fi;
#endif

    /* -- write the bytes, seal; or abort ---------------------------------------------------------- */
    if
    :: d_step { NOT_PINNED(s); content[s] = DIRTY }
    :: (mask & ABORT) -> goto abort
    CRASH
    fi;
    if
    :: d_step { NOT_PINNED(s); content[s] = TAG(s, g) }
    CRASH
    fi;
#ifdef SPANS
    if
    :: d_step { sp == 2 -> NOT_PINNED(s + 1); content[s + 1] = DIRTY }
        if
        :: d_step { NOT_PINNED(s + 1); content[s + 1] = TAG(s, g) }
        CRASH
        fi
    :: sp == 1
    CRASH
    fi;
    if
    :: d_step { span[s] = sp }
    CRASH
    fi;
#endif
    if
    :: d_step { /* seal: never refused to a live client */
        FENCE;
        MUST(IS(s, g, ix + 1, WRITING));
        SET(s, g, ix + 1, SEALED);
        wr[s] = 0;
#ifdef SPANS
        if
        :: sp == 2 -> wr[s + 1] = 0
        :: else
        fi;
#endif
        hs = s;
        hg = g;
        forget()
    }
    CRASH
    fi;
    if
    :: d_step { HS = hs; HG = hg } goto again
    CRASH
    fi;

abort:
#ifdef SPANS
    if
    :: d_step {
        sp == 2 ->
            MUST(IS(s + 1, g2, ix + 1, TAIL));
            wr[s + 1] = 0;
            TO_FREE(s + 1, g2)
    }
    :: sp == 1
    CRASH
    fi;
give_back:
#endif
    if
    :: d_step {
        MUST(IS(s, g, ix + 1, WRITING));
        wr[s] = 0;
        TO_FREE(s, g);
        forget()
    } goto again
    CRASH
    fi;

    /* -- pin, second half ------------------------------------------------------------------------- */
#ifndef MUT_PIN_NO_RECHECK
pin_word:
    if
    :: d_step { PIN_HOLDS -> gp[me] = hs + 1 }
    :: d_step { !PIN_HOLDS -> MET(16, "pin refused: stale") } goto unpin
    CRASH
    fi;
#endif

    /* NO_TORN_READ: under a valid pin every byte is that of the handle's claim, at any time */
read:
    if
    :: d_step {
        assert(content[hs] == TAG(hs, hg) || NO_TORN_READ);
        if
        :: st[hs] == RETIRED -> MET(17, "read of RETIRED under a pin")
        :: else -> MET(18, "read of SEALED under a pin")
        fi
    }
    CRASH
    fi;
#ifdef SPANS
    if
    :: d_step {
        span[hs] == 2 ->
            assert(content[hs + 1] == TAG(hs, hg) || NO_TORN_READ);
            MET(19, "read of a tail under a pin")
    }
    :: span[hs] != 2
    CRASH
    fi;
#endif

unpin:
    if
#ifdef MUT_UNPIN_NO_FINALIZE
    :: d_step { gp[me] = 0; CELL(hs, ix)-- } goto again
#else
    :: d_step { gp[me] = 0; CELL(hs, ix)-- }
#endif
    CRASH
    fi;
    if
    :: d_step {
        st[hs] == RETIRED -> fs = hs; fg = gen[hs]; fo = own[hs]; MET(20, "unpin finalizes")
    } goto finalize
    :: st[hs] != RETIRED -> goto again
    CRASH
    fi;

    /* -- free: the handle's generation was seen SEALED with owner fo ------------------------------- */
free_cas:
    if
    :: d_step { /* DOUBLE_FREE_DETECTED: one handle is freed once, and StaleHandleError is true */
        IS(hs, hg, fo, SEALED) ->
            assert(ret[hs] < hg || DOUBLE_FREE_DETECTED);
            ret[hs] = hg;
            SET(hs, hg, fo, RETIRED);
            fs = hs;
            fg = hg
#if defined(MUT_HIGH_WATER_EARLY)
    } goto row
#elif defined(MUT_ROW_BEFORE_RETIRE)
    } goto row_was_read
#else
    } goto finalize
#endif
#ifdef MUT_FREE_NO_RETRY
    :: d_step {
        !IS(hs, hg, fo, SEALED) -> assert(ret[hs] >= hg || DOUBLE_FREE_DETECTED); forget()
    } goto again
#else
    :: d_step { /* look at the word again */
        !IS(hs, hg, fo, SEALED) ->
            if
            :: gen[hs] == hg && st[hs] == SEALED -> MET(21, "free goes on after an adoption")
            :: else -> MET(22, "free lost")
            fi;
            forget();
            left++
    } goto again
#endif
    CRASH
    fi;

    /* -- finalize slot fs, seen as { fg, fo, RETIRED } ---------------------------------------------- */
finalize:
    if
    :: d_step { sp = hw } /* read after the word was seen RETIRED */
    CRASH
    fi;
#ifdef MUT_ROW_BEFORE_RETIRE
    goto row;
row_was_read:
    if
    :: d_step { j < NC -> forget() } goto again
    :: d_step { j == NC -> j = 0 } goto tails
    CRASH
    fi;
#endif
row:
#ifdef MUT_FINALIZE_NO_ROW
    j = 0;
    sp = 0;
#else
    if
    :: d_step { CELL(fs, j) != 0 -> forget(); MET(23, "finalize put off by a count") } goto again
    :: d_step { CELL(fs, j) == 0 && j < sp - 1 -> j++ } goto row
    :: d_step { CELL(fs, j) == 0 && j == sp - 1 -> j = 0; sp = 0 }
    CRASH
    fi;
#endif
#ifdef MUT_ROW_BEFORE_RETIRE
tails:
#endif
#ifdef SPANS
#ifdef MUT_HEAD_BEFORE_TAILS
    if
    :: d_step {
        if
        :: IS(fs, fg, fo, RETIRED) -> TO_FREE(fs, fg)
        :: else
        fi
    }
    CRASH
    fi;
#endif
    if
    :: span[fs] == 2
    :: span[fs] != 2 -> goto head
    CRASH
    fi;
    if
    :: d_step { st[fs + 1] == TAIL -> tg = gen[fs + 1]; to_ = own[fs + 1] }
    :: st[fs + 1] != TAIL -> goto head
    CRASH
    fi;
#ifndef MUT_TAIL_NO_LINK_CHECK
    if
    :: lks[fs + 1] == fs
    :: d_step { lks[fs + 1] != fs -> tg = 0; to_ = 0 } goto head
    CRASH
    fi;
    if
    :: lkg[fs + 1] == fg
    :: d_step {
        lkg[fs + 1] != fg -> tg = 0; to_ = 0; MET(24, "finalize sees a TAIL of a later claim")
    } goto head
    CRASH
    fi;
#endif
    if
    :: d_step {
        if
        :: IS(fs + 1, tg, to_, TAIL) -> OWN_ALONE(fs + 1); TO_FREE(fs + 1, tg)
        :: else -> MET(25, "finalize lost a TAIL")
        fi;
        tg = 0;
        to_ = 0
    }
    CRASH
    fi;
head:
#endif
    if
    :: d_step {
        if
        :: IS(fs, fg, fo, RETIRED) -> TO_FREE(fs, fg)
        :: else -> MET(26, "finalize lost the head")
        fi;
        forget()
    } goto again
    CRASH
    fi;

    /* -- at rest: alive, with whatever it owns; it may still die --------------------------------------- */
rest:
end_rest:
    if
    :: d_step { !checked && crashes < MAXCRASH -> die() } goto end_dead
    fi;
end_dead:
    false
}

/* ---- the last cleaner: everybody is at rest, dead or stopped ---------------------------------------
 *
 * It does what a claim does that finds nothing: finalize what is RETIRED, then reclaim the dead among
 * the owners and pinners seen, again until there is nothing left to see. Nobody else runs any more, so
 * it is one step here. */

inline last_finalize(S)
{
    zi = 0;
    do
    :: zi < NC && CELL(S, zi) == 0 -> zi++
    :: else -> break
    od;
    if
    :: zi == NC ->
#ifdef SPANS
        if
        :: S + 1 < NS && span[S] == 2 ->
            if
            :: st[S + 1] == TAIL && lks[S + 1] == S && lkg[S + 1] == gen[S] ->
                SET(S + 1, gen[S + 1], 0, FREE)
            :: else
            fi
        :: else
        fi;
#endif
        SET(S, gen[S], 0, FREE)
    :: else
    fi
}

#define ATTACHING(s) (own[s] && xl[own[s] - 1] && !att[own[s] - 1])
#define ALIVE(s) (own[s] && xl[own[s] - 1])

proctype last_cleaner()
{
    byte i, s, k;
    d_step {
        ALL_AT_REST ->
        checked = true;
        /* NO_STRANDED_RETIRED: without a death or a stop, the last unpin or the free has finalized */
        s = 0;
        do
        :: s < NS ->
            assert(crashes + stops > 0 || st[s] != RETIRED || NO_STRANDED_RETIRED);
            s++
        :: else -> break
        od;
        s = 0;
        do
        :: s < NS ->
            if
            :: st[s] == RETIRED -> last_finalize(s)
            :: else
            fi;
            s++
        :: else -> break
        od;
        k = 0;
        do
        :: k < NC * NC ->
            i = k % NC;
            z = 0; /* is i seen as an owner, or as a pinner of what waits to be freed? */
            do
            :: z < NS && own[z] != i + 1 && !(st[z] == RETIRED && CELL(z, i)) -> z++
            :: else -> break
            od;
            if
#ifdef MUT_CLEANER_EXCLUSIVE
            :: z < NS && xl[i] == 0 && !CLEANED(i) ->
#else
            :: z < NS && xl[i] == 0 ->
#endif
                s = 0;
                do
                :: s < NS -> CELL(s, i) = 0; s++
                :: else -> break
                od;
                if
                :: CLEANED(i) -> MET(27, "the last cleaner cleans beside a stopped one")
                :: else
                fi;
                s = 0;
                do
                :: s < NS ->
                    if
                    :: st[s] == WRITING && own[s] == i + 1 -> SET(s, gen[s], 0, FREE)
                    :: st[s] == SEALED && own[s] == i + 1 ->
                        SET(s, gen[s], 0, RETIRED);
                        last_finalize(s)
                    :: st[s] == RETIRED -> last_finalize(s)
#ifdef SPANS
                    :: st[s] == TAIL && own[s] == i + 1 ->
                        if
                        :: gen[lks[s]] == lkg[s] && (st[lks[s]] == SEALED || st[lks[s]] == RETIRED)
                        :: else -> SET(s, gen[s], 0, FREE)
                        fi
#endif
                    :: else
                    fi;
                    s++
                :: else -> break
                od
            :: else
            fi;
            k++
        :: else -> break
        od;
        /* EVERY_DEAD_FREED: what is not FREE is held by somebody alive; a TAIL has its head */
        s = 0;
        do
        :: s < NS ->
            if
            :: ATTACHING(s) -> assert(stops > 0 || EVERY_DEAD_FREED)
            :: else ->
                assert((st[s] != WRITING && st[s] != SEALED) || ALIVE(s) || EVERY_DEAD_FREED);
                assert(st[s] != WRITING || stops > 0 || EVERY_DEAD_FREED);
                assert(st[s] != RETIRED || stops > 0 || EVERY_DEAD_FREED);
#ifdef SPANS
                assert(st[s] != TAIL || (gen[lks[s]] == lkg[s] && st[lks[s]] != FREE) || EVERY_DEAD_FREED);
#else
                assert(st[s] != TAIL || EVERY_DEAD_FREED);
#endif
                zi = 0;
                do
                :: zi < NC && (CELL(s, zi) == 0 || xl[zi] == 0) -> zi++
                :: else -> break
                od;
                /* nobody alive pins it: it is not RETIRED; without a stop nobody at rest pins */
                assert(st[s] != RETIRED || zi < NC || EVERY_DEAD_FREED);
                assert(zi == NC || stops > 0 || EVERY_DEAD_FREED)
            fi;
            s++
        :: else -> break
        od;
        s = 0;
        i = 0;
        k = 0;
        MET(28, "everything at rest and clean")
    }
    end_checked:
    false
}

#define START(p, index, ops, budget)                                                               \
    if                                                                                             \
    :: index > 0 -> xl[index - 1] = p + 1; nonce[index - 1] = 1; att[index - 1] = 1                \
    :: else                                                                                        \
    fi;                                                                                            \
    run client(p, index, ops, budget)
#define START_(p, x) START(p, x)

init
{
    atomic {
        START_(0, P0);
        START_(1, P1);
#if NP > 2
        START_(2, P2);
#endif
#if NP > 3
        START_(3, P3);
#endif
        run last_cleaner()
    }
    end_init:
    false
}

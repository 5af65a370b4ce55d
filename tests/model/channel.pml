/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The life of a message in a work queue's ring, as docs/channels.md describes it, for Spin.
 * docs/model.md says what is modelled, what is left out, and what each mutation (MUT_*) is for.
 *
 * As in slots.pml: one option of an `if` is one atomic access to the shared memory with the private
 * arithmetic around it; CRASH lets the process die before it. Waiting is blocking at a label
 * `end_wait` until the shared memory is such that a new try would get further. Nobody dies there: that
 * is to die at the start of the try; and so a run may come to rest with deaths to spare.
 *
 * The slot of message m is slot m: its owner is a process + 1, CUSTODY or FREED. Its sender has
 * claimed and sealed it before it takes a cell (slots.pml checks that life).
 *
 * Configuration, by -D:
 *   CAP cells, NS senders, NR receivers, NCL cleaners, NM messages
 *   MAXCRASH deaths of senders and receivers, MAXCLEANERCRASH deaths of cleaners, in one run
 *   RESCUE: receivers that slept long look through all cells
 */

#define NP (NS + NR)

/* states of a cell, as in the format */
#define EMPTY 0
#define WRITING 1
#define FULL 2
#define READING 3
#define LOST 4

#define CUSTODY 100
#define FREED 101

/* ---- shared memory ---------------------------------------------------------------------------- */

byte pos[CAP], own[CAP], st[CAP]; /* the word: always read and written as one */
byte hm[CAP];                     /* the handle in the cell: message + 1; 0 is none */
byte tail, head;
byte so[NM]; /* owner of the slot of message m; 0: not begun */

/* ---- who lives (the lock bytes), and ghosts ------------------------------------------------------ */

bool dead[NP], healed[NP], rests[NS];
byte next, crashes, ccrashes;
byte accepted[NM];
bool sent[NM], back[NM]; /* send returned; was given back to the ring */
byte prior[NM];          /* bits: the messages whose send had returned when this one began */

hidden byte NEVER_TWICE, NEVER_TORN, NONE_LOST, NOTHING_LEAKS, NOBODY_STUCK, IN_ORDER;
hidden byte z, y;

c_decl { static unsigned char met[64]; };
#define MET(n, what)                                                                               \
    c_code { if (!met[n]) { met[n] = 1; printf("met: %s\n", what); } }

#define C(p) ((p) % CAP)
#define IS(p, o, x) (pos[C(p)] == (p) && own[C(p)] == (o) && st[C(p)] == (x))
#define SET(p, o, x)                                                                               \
    pos[C(p)] = p;                                                                                 \
    own[C(p)] = o;                                                                                 \
    st[C(p)] = x

#define CRASH                                                                                      \
    :: d_step {                                                                                    \
        crashes < MAXCRASH -> crashes++; dead[me] = 1; m = 0; t = 0                                \
    }                                                                                              \
    goto end_dead

#define ADVANCE(word, from)                                                                        \
    if                                                                                             \
    :: word == from -> word = from + 1                                                             \
    :: else                                                                                        \
    fi
#define LOWER(p)                                                                                   \
    if                                                                                             \
    :: head > (p) -> head = p                                                                      \
    :: else                                                                                        \
    fi

/* A try of a sender (of a receiver) would change something. */
#define LAP_FULL(t) (pos[C(t)] < (t) && st[C(t)] == FULL && head > pos[C(t)])
#ifdef MUT_NO_HELP
#define SENDS_AT(t) IS(t, 0, EMPTY)
#else
#define SENDS_AT(t) pos[C(t)] >= t
#endif
#define TRY_SEND                                                                                   \
    (SENDS_AT(tail) || (pos[C(tail)] < tail && st[C(tail)] == LOST) || LAP_FULL(tail))
#define NEXT_FULL(h) (CAP > 1 && IS((h) + 1, 0, FULL))
#define TRY_TAKE                                                                                   \
    (pos[C(head)] > head ||                                                                        \
     (pos[C(head)] == head && (st[C(head)] == FULL || st[C(head)] == LOST || st[C(head)] == READING)) || \
     (pos[C(head)] < head && st[C(head)] == FULL) ||                                               \
     (pos[C(head)] == head && st[C(head)] == WRITING && NEXT_FULL(head)))

#define BEHIND(c) (c < CAP && st[c] == FULL && pos[c] < head)

/* ---- senders ------------------------------------------------------------------------------------ */

proctype sender(byte me)
{
    byte m; /* my message + 1 */
    byte t;

again:
    if
    :: d_step {
        next < NM ->
            m = next + 1;
            so[next] = me + 1;
            z = 0;
            do
            :: z < NM ->
                if
                :: sent[z] -> prior[next] = prior[next] | (1 << z)
                :: else
                fi;
                z++
            :: else -> break
            od;
            next++
    }
    :: d_step { next == NM -> rests[me] = 1 } goto end_rest
    CRASH
    fi;
claim:
    if
    :: d_step { t = tail }
    CRASH
    fi;
    if
    :: d_step { IS(t, 0, EMPTY) -> SET(t, me + 1, WRITING) }
#ifndef MUT_NO_HELP
    :: d_step {
        pos[C(t)] > t || (pos[C(t)] == t && st[C(t)] != EMPTY) ->
            ADVANCE(tail, t);
            MET(0, "a sender advances tail for another")
    } goto claim
#else
    :: d_step { pos[C(t)] > t || (pos[C(t)] == t && st[C(t)] != EMPTY) } goto end_wait
#endif
    :: d_step {
        pos[C(t)] < t && st[C(t)] == LOST -> SET(t, 0, EMPTY); MET(1, "a sender takes a tombstone away")
    } goto claim
    :: d_step { LAP_FULL(t) -> LOWER(pos[C(t)]); MET(2, "a sender lowers head") } goto end_wait
    :: d_step { pos[C(t)] < t && st[C(t)] != LOST && !LAP_FULL(t) } goto end_wait
    CRASH
    fi;
    goto mine;
end_wait:
    if
    :: d_step { TRY_SEND -> t = 0 } goto claim
    fi;
mine:
    if
    :: d_step { ADVANCE(tail, t) }
    CRASH
    fi;
    if
    :: d_step { hm[C(t)] = m }
    CRASH
    fi;
#ifndef MUT_PUBLISH_BEFORE_CUSTODY
    if
    :: d_step { so[m - 1] = CUSTODY }
    CRASH
    fi;
#endif
    if
    :: d_step { assert(IS(t, me + 1, WRITING) || NEVER_TORN); SET(t, 0, FULL) }
    CRASH
    fi;
#ifdef MUT_PUBLISH_BEFORE_CUSTODY
    if
    :: d_step { so[m - 1] = CUSTODY }
    CRASH
    fi;
#endif
    d_step { sent[m - 1] = 1; m = 0; t = 0 }
    goto again;
end_rest:
end_dead:
    skip
}

/* ---- receivers ---------------------------------------------------------------------------------- */

/* IN_ORDER: no message is taken while one waits that was sent before this one began. */
inline taken_in_order(x)
{
    z = 0;
    do
    :: z < CAP ->
        if
        :: st[z] == FULL && pos[z] < pos[C(t)] && !back[hm[z] - 1] ->
            assert(!(prior[x] & (1 << (hm[z] - 1))) || IN_ORDER)
        :: else
        fi;
        z++
    :: else -> break
    od;
    z = 0
}

proctype receiver(byte me)
{
    byte m;
    byte t; /* the position that I look at, then mine */

take:
    if
    :: d_step { t = head }
    CRASH
    fi;
    if
#ifdef MUT_TAKE_NO_CAS
    :: d_step { IS(t, 0, FULL) }
        if
        :: d_step { SET(t, me + 1, READING) } goto advance
        fi
#else
    :: d_step { IS(t, 0, FULL) -> SET(t, me + 1, READING); taken_in_order(hm[C(t)] - 1) } goto advance
#endif
    :: d_step { pos[C(t)] > t -> ADVANCE(head, t) } goto take
    :: d_step {
        pos[C(t)] < t && st[C(t)] == FULL -> LOWER(pos[C(t)]); MET(3, "a receiver lowers head a lap")
    } goto take
    :: d_step {
        IS(t, 0, LOST) -> SET(t + CAP, 0, EMPTY); MET(4, "a receiver takes a tombstone away")
    } goto take
    :: d_step { pos[C(t)] == t && st[C(t)] == READING } goto pass
    :: d_step { pos[C(t)] == t && st[C(t)] == WRITING } goto ahead
    :: d_step { pos[C(t)] == t && st[C(t)] == EMPTY } goto end_wait
    :: d_step { pos[C(t)] < t && st[C(t)] != FULL } goto end_wait
    CRASH
    fi;
end_wait:
    if
    :: d_step { TRY_TAKE -> t = 0 } goto take
#ifdef RESCUE
    :: d_step {
        !TRY_TAKE && BEHIND(0) -> head = pos[0]; MET(5, "a receiver rescues a message behind head")
    } goto take
    :: d_step { !TRY_TAKE && BEHIND(1) -> head = pos[1] } goto take
#endif
    fi;

pass: /* advance past READING, then look again (SYNC-6) */
    if
    :: d_step { ADVANCE(head, t) }
    CRASH
    fi;
#ifdef MUT_PASS_NO_RECHECK
    goto take;
#else
    if
    :: d_step { !IS(t, 0, FULL) } goto take
    :: d_step { IS(t, 0, FULL) }
    CRASH
    fi;
    if
    :: d_step { LOWER(t); MET(6, "a receiver lowers head after it passed READING") } goto take
    CRASH
    fi;
#endif

ahead: /* WRITING: the next one, if it is FULL and this one still is not */
    if
    :: d_step { NEXT_FULL(t) }
    :: d_step { !NEXT_FULL(t) } goto end_wait
    CRASH
    fi;
#ifndef MUT_AHEAD_NO_LOOK
    if
    :: d_step { IS(t, 0, FULL) } goto take
    :: d_step { !IS(t, 0, FULL) }
    CRASH
    fi;
#endif
    if
    :: d_step {
        NEXT_FULL(t) ->
            t = t + 1;
            SET(t, me + 1, READING);
            taken_in_order(hm[C(t)] - 1);
            MET(7, "a message is taken ahead of one being written")
    } goto read
    :: d_step { !NEXT_FULL(t) } goto take
    CRASH
    fi;

advance:
    if
    :: d_step { ADVANCE(head, t) }
    CRASH
    fi;
read:
    if
    :: d_step { m = hm[C(t)]; assert(so[m - 1] == CUSTODY || NEVER_TORN) }
    CRASH
    fi;
#ifndef MUT_ACCEPT_BEFORE_REDEEM
    if
    :: d_step { assert(so[m - 1] == CUSTODY || NEVER_TORN); so[m - 1] = me + 1 }
    CRASH
    fi;
#endif
    if
    :: d_step {
        assert(IS(t, me + 1, READING) || NEVER_TWICE);
        SET(t + CAP, 0, EMPTY);
        accepted[m - 1]++;
        assert(accepted[m - 1] == 1 || NEVER_TWICE)
    }
    CRASH
    fi;
#ifdef MUT_ACCEPT_BEFORE_REDEEM
    if
    :: d_step { so[m - 1] = me + 1 }
    CRASH
    fi;
#endif
    if
    :: d_step { so[m - 1] = FREED; m = 0; t = 0 } goto take
    CRASH
    fi;
end_dead:
    skip
}

#define DEAD(i) (dead[i] && !healed[i])
#if NP == 3
#define SOMEBODY_TO_HEAL (DEAD(0) || DEAD(1) || DEAD(2))
#define FIRST_TO_HEAL (DEAD(0) -> 0 : (DEAD(1) -> 1 : 2))
#define LAST_TO_HEAL (DEAD(2) -> 2 : (DEAD(1) -> 1 : 0))
#else
#define SOMEBODY_TO_HEAL (DEAD(0) || DEAD(1) || DEAD(2) || DEAD(3))
#define FIRST_TO_HEAL (DEAD(0) -> 0 : (DEAD(1) -> 1 : (DEAD(2) -> 2 : 3)))
#define LAST_TO_HEAL (DEAD(3) -> 3 : (DEAD(2) -> 2 : (DEAD(1) -> 1 : 0)))
#endif

/* ---- reclaim: any number at once, of any dead process ------------------------------------------------ */

#define CLEANER_CRASH                                                                              \
    :: d_step { ccrashes < MAXCLEANERCRASH -> ccrashes++; p = 0; c = 0; w = 0; x = 0; i = 0 }      \
    goto end_dead

proctype cleaner()
{
    byte p; /* the dead process + 1 */
    byte c, w, x, i;

end_idle:
    if
    :: d_step { SOMEBODY_TO_HEAL -> p = FIRST_TO_HEAL + 1 }
#ifdef MUT_HEAL_THE_LIVING
    :: d_step { !dead[NS] && !healed[NS] && st[0] == READING && own[0] == NS + 1 -> p = NS + 1 }
#endif
    :: d_step { SOMEBODY_TO_HEAL && LAST_TO_HEAL != FIRST_TO_HEAL -> p = LAST_TO_HEAL + 1 }
    fi;
#ifdef MUT_SLOTS_FIRST
    d_step {
        z = 0;
        do
        :: z < NM ->
            if
            :: so[z] == p -> so[z] = FREED
            :: else
            fi;
            z++
        :: else -> break
        od;
        z = 0
    }
#endif
cells:
    if
    :: d_step { c < CAP && own[c] == p && st[c] == WRITING -> w = pos[c] } goto bury
#ifdef MUT_BURY_READING
    :: d_step { c < CAP && own[c] == p && st[c] == READING -> w = pos[c]; st[c] = WRITING } goto bury
#else
    :: d_step { c < CAP && own[c] == p && st[c] == READING -> w = pos[c] } goto give_back
#endif
    :: d_step { c < CAP && own[c] != p -> c++ } goto cells
    :: d_step { c == CAP -> c = 0; i = 0 } goto slots
    fi;

bury:
    if
    :: d_step { x = hm[c] }
    CLEANER_CRASH
    fi;
#ifndef MUT_HANDLE_NO_LOOK
    if
    :: d_step { IS(w, p, WRITING) }
    :: d_step { !IS(w, p, WRITING) -> x = 0; MET(8, "a cleaner finds another was faster") } goto cells
    CLEANER_CRASH
    fi;
#endif
#ifndef MUT_BURY_NO_FREE
    if
    :: d_step {
        if
        :: x > 0 && so[x - 1] == CUSTODY ->
            so[x - 1] = FREED;
            MET(9, "a cleaner frees a slot in custody")
        :: else
        fi
    }
    CLEANER_CRASH
    fi;
#endif
    if
    :: d_step {
        if
        :: IS(w, p, WRITING) -> SET(w, 0, LOST)
        :: else
        fi;
        x = 0
    } goto cells
    CLEANER_CRASH
    fi;

give_back:
    if
    :: d_step { x = hm[c] }
    CLEANER_CRASH
    fi;
    if
    :: d_step { IS(w, p, READING) }
    :: d_step { !IS(w, p, READING) -> x = 0 } goto cells
    CLEANER_CRASH
    fi;
    if
    :: d_step {
        if
        :: x > 0 && so[x - 1] == p -> so[x - 1] = CUSTODY; MET(10, "a slot goes back into custody")
        :: else
        fi
    }
    CLEANER_CRASH
    fi;
    if
    :: d_step {
        if
        :: IS(w, p, READING) -> SET(w, 0, FULL); back[x - 1] = 1
        :: else -> w = 255
        fi;
        x = 0
    }
    CLEANER_CRASH
    fi;
#ifndef MUT_NO_LOWER
    if
    :: d_step {
        if
        :: w != 255 -> LOWER(w)
        :: else
        fi
    }
    CLEANER_CRASH
    fi;
#endif
    goto cells;

slots:
    if
    :: d_step {
        i < NM ->
            if
            :: so[i] == p -> so[i] = FREED
            :: else
            fi;
            i++
    } goto slots
    :: d_step { i == NM -> healed[p - 1] = 1; p = 0; c = 0; w = 0; x = 0; i = 0 } goto end_idle
    CLEANER_CRASH
    fi;
end_dead:
    skip
}

/* ---- nobody can do anything any more --------------------------------------------------------------- */

proctype judge()
{
end_asleep:
    timeout;
    d_step {
            z = 0;
            y = 0; /* receivers alive */
            do
            :: z < NP ->
                assert((!dead[z] || healed[z]) || NOBODY_STUCK);
                if
                :: z >= NS && !dead[z] -> y++
                :: else
                fi;
                z++
            :: else -> break
            od;
            z = 0;
            do
            :: z < NS -> assert((y == 0 || dead[z] || rests[z]) || NOBODY_STUCK); z++
            :: else -> break
            od;
            z = 0;
            do
            :: z < CAP ->
                assert(own[z] == 0 || NOBODY_STUCK);
                assert((y == 0 || st[z] != FULL) || NOBODY_STUCK);
                if
                :: st[z] == FULL -> accepted[hm[z] - 1]++ /* still there for whoever comes */
                :: else
                fi;
                z++
            :: else -> break
            od;
            z = 0;
            do
            :: z < NM ->
                assert((!sent[z] || accepted[z] > 0) || NONE_LOST);
                assert(accepted[z] <= 1 || NEVER_TWICE);
                z++
            :: else -> break
            od;
            z = 0;
            do
            :: z < NM && so[z] == CUSTODY ->
                y = 0;
                do
                :: y < CAP && !(st[y] == FULL && hm[y] == z + 1) -> y++
                :: else -> break
                od;
                assert(y < CAP || NOTHING_LEAKS);
                z++
            :: z < NM && so[z] != CUSTODY -> z++
            :: else -> break
            od;
            if
            :: crashes > 0 -> MET(11, "rest after a death")
            :: else -> MET(12, "rest without a death")
            fi
    }
}

init {
    d_step {
        z = 0;
        do
        :: z < CAP -> pos[z] = z; z++
        :: else -> break
        od
    }
    atomic {
        byte n = 0;
        do
        :: n < NS -> run sender(n); n++
        :: n >= NS && n < NP -> run receiver(n); n++
        :: else -> break
        od;
        n = 0;
        do
        :: n < NCL -> run cleaner(); n++
        :: else -> break
        od;
        run judge()
    }
}

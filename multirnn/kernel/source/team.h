/* The team: the caller's thread and workers that wait between calls; and memory that is kept from call to call.

   A worker may come late, or not at all: where other work has its core, the caller would wait for milliseconds. So nobody
   counts on it. What is to be done lies on an agenda, whoever is there takes the next item, and only an item that somebody
   has begun is waited for. */
#ifndef TEAM_H
#define TEAM_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

/* work(argument, rank, members) by the caller, whose rank is 0, and by those of `members` - 1 workers that come before the
   caller is through. Each runs through the same agenda. One team works at a time; a second caller waits. */
typedef void team_work(void *argument, int rank, int members);
void multirnn_team(team_work *work, void *argument, int members);

/* What others wait for to grow, and how many of them sleep. */
typedef struct {
    _Atomic long count;
    _Atomic int sleepers;
} counter;

/* The items of a call, counted from 0 in the order in which they are taken; begins as zeros. */
typedef struct {
    _Atomic long taken;
    counter done;
} agenda;

long multirnn_take(agenda *agenda, long end); /* the next item before `end`, or -1 */
void multirnn_done(agenda *agenda);           /* with an item that was taken */
void multirnn_wait(agenda *agenda, long end); /* until all items before `end` are done */

/* Members that go step by step together; begins as zeros. */
typedef struct {
    counter members, meetings;
    _Atomic int arrived;
    _Atomic long until; /* the first step that the caller does alone, because one of them kept it waiting; or 0 */
    _Atomic uint64_t waiting; /* to be let in, a bit a rank */
    long from;          /* the first step of those who were let in last */
    int dismissed;      /* how many they were, the caller too: all of them have to have heard of it first */
} crew;

/* How many they are, of at most `members`: the ranks below that, who were there when the caller came here. Who comes later
   waits to be let in, and learns the first step that it takes part in; or that the caller is through, then it is 0. */
int multirnn_crew(crew *crew, int rank, int members, long *from);

/* By the caller where it is alone, before a step: lets in who waits. How many go on. */
int multirnn_let_in(crew *crew, long step);

/* By the caller: nobody is let in any more. */
void multirnn_through(crew *crew);

/* Waits for all of them, in the middle of a step or at its end; returns how many go on with the next step: all, or one. */
int multirnn_meet(crew *crew, int rank, int members, long step);

/* Memory aligned to 64 bytes, of no particular content; NULL where there is none. */
void *multirnn_borrow(size_t bytes);
void multirnn_give_back(void *memory);

#endif

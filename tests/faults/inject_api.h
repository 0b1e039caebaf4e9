/* What a test says to inject.h; read by the C compiler and by cffi. */

/* System calls and allocations, and the preparation of an entry: the value is the errno that the call answers. */
#define TF_SETUP 0
#define TF_REGISTER 1
#define TF_ENTER 2
#define TF_EVENTFD 3
#define TF_READ 4
#define TF_WRITE 5
#define TF_POLL 6
#define TF_MMAP 7
#define TF_ALLOC 8
#define TF_SQE 9
/* Enters that submit: the value is how many entries the kernel takes. */
#define TF_SHORT 10
/* Completions: lost; late by `value` enters; doubled; no room in the queue. */
#define TF_LOSE 11
#define TF_LATE 12
#define TF_DOUBLE 13
#define TF_NO_ROOM 14
/* Cancels by user_data: the kernel does not find their target. */
#define TF_MISS 15
/* Questions about a file (lseek, fcntl, fstat, fstatfs, statx) and fallocate: the value is the errno. */
#define TF_FILE 16
/* Reads, writes, splices, sends and receives: the kernel does about half. */
#define TF_PART 17
/* Enters that run deferred work: a worker says that there is some (IORING_SQ_TASKRUN) when it has been run. */
#define TF_STALE 18
/* Entries that the kernel may hand to a worker: it can make none, and says -ECANCELED. */
#define TF_WORKER 19
/* Completions: there, and once more `value` enters later. */
#define TF_AGAIN 20
#define TF_KINDS 21
#define TF_FIRST_USER_DATA 16

/* Lets the nth call of a kind from now on (1: the next), and `times` - 1 after it (0: all), fail. */
void tf_arm(int kind, unsigned nth, unsigned times, int value);
void tf_spare(int kind, unsigned spared); /* of so many of them the last one succeeds (0: none) */
void tf_disarm(void);
unsigned tf_calls(int kind); /* since the start of the process */

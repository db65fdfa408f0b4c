/* The thresholds of multirnn/kernel/source/thresholds.h so low that small problems cross them; included before it. */
#define THRESHOLDS_H

#define SMALL 2e3
#define OWN_CACHE (4 << 10)
#define WAITING_ROWS 3
#define FAR_WEIGHTS (16 << 10)
#define FEW_ROWS 5
#define PIECES_OF_A_MEMBER 2
#define ITEMS_OF_A_MEMBER 2

#define UNPACKED_LEAST 2
#define UNPACKED_MOST 12
#define WEIGHTS_OF_A_ROW 500

#define BLOCK_BYTES (1 << 10)
#define BLOCK_ROWS 7
#define PANEL_BYTES (1 << 10)
#define ROWS_BYTES (2 << 10)
#define DEPTH_BLOCK 7

#define KEPT_BYTES ((size_t)256 << 10)
#define HUGE_PAGE ((size_t)64 << 10)

/* A gap after every array of an arena, which AddressSanitizer watches. */
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#define POISON __asan_poison_memory_region
#define UNPOISON __asan_unpoison_memory_region
#else
#define POISON(AT, BYTES) ((void)(AT))
#define UNPOISON(AT, BYTES) ((void)(AT))
#endif
#define GUARD(ARENA, PIECE, BYTES)                                                                           \
    do {                                                                                                     \
        (ARENA)->used += 64;                                                                                 \
        if (PIECE)                                                                                           \
            POISON((char *)(PIECE) + (BYTES), (size_t)((ARENA)->base + (ARENA)->used - (char *)(PIECE)) - (BYTES)); \
    } while (0)

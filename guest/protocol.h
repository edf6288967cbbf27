/* The numbers of docs/guest-protocol.md; src/lamella/host/compute/guest/frames.py and fields.py hold the same ones. */
#pragma once

#define PROTOCOL_VERSION 1

/* A greeting is magic, u32 version, u64 nonce, u32 zero: 32 bytes. */
#define GREETING_HOST "\0LAMELLA-AGENT\r\n"
#define GREETING_GUEST "\0LAMELLA-GUEST\r\n"
#define MAGIC_SIZE 16
#define GREETING_SIZE 32

/* A frame is u32 length, u32 stream, u8 type, u8 flags, u16 zero, payload, u32 seal. */
#define HEADER_SIZE 12
#define SEAL_SIZE 4
#define LARGEST_PAYLOAD 65536
#define LARGEST_REQUEST (3u << 20)
#define FRAME_COST (HEADER_SIZE + SEAL_SIZE) /* what a frame of data costs of its stream's window besides its payload */
#define WINDOW (256u << 10)
#define MOST_STREAMS 256

enum frame_type {
    FRAME_REQUEST = 1,
    FRAME_DATA = 2,
    FRAME_END = 3,
    FRAME_CREDIT = 4,
    FRAME_CONTROL = 5,
    FRAME_CLOSE = 6,
    FRAME_ITEM = 7,
    FRAME_HELLO = 8,
};

#define FLAG_MORE 1

enum channel_number { CHANNEL_INPUT = 0, CHANNEL_STDOUT = 1, CHANNEL_STDERR = 2 };

enum verb {
    VERB_CONFIGURE = 1,
    VERB_START = 2,
    VERB_EXEC = 3,
    VERB_ATTACH = 4,
    VERB_LOGS = 5,
    VERB_ACKNOWLEDGE_LOGS = 6,
    VERB_SIGNAL = 7,
    VERB_STATE = 8,
    VERB_WAIT_EXIT = 9,
    VERB_ACKNOWLEDGE_EXIT = 10,
    VERB_SHUTDOWN = 11,
    VERB_STAT = 12,
    VERB_LIST = 13,
    VERB_READ = 14,
    VERB_WRITE = 15,
    VERB_MAKE_DIRECTORY = 16,
    VERB_USAGE = 17,
    VERB_FREEZE = 18,
    VERB_THAW = 19,
    VERB_RESEED = 20,
    VERB_SET = 21,
    VERB_MOUNT = 22,
    VERB_UNMOUNT = 23,
    VERB_HOLD = 24,
    VERB_RELEASE = 25,
    VERB_RENEW = 26,
    VERB_PREPARE = 27,
};

enum tag {
    TAG_VERB = 1,
    TAG_PATH = 2,
    TAG_ARGUMENT = 3,
    TAG_ENVIRONMENT = 4,
    TAG_WORKING_DIRECTORY = 5,
    TAG_USER = 6,
    TAG_TERMINAL = 7,
    TAG_STDIN = 8,
    TAG_ROWS = 9,
    TAG_COLUMNS = 10,
    TAG_TIMEOUT_MS = 11,
    TAG_SIGNAL = 12,
    TAG_EXIT_CODE = 13,
    TAG_REASON = 14,
    TAG_ERROR = 15,
    TAG_MESSAGE = 16,
    TAG_MODE = 17,
    TAG_UID = 18,
    TAG_GID = 19,
    TAG_SIZE = 20,
    TAG_MODIFIED_NS = 21,
    TAG_TARGET = 22,
    TAG_FILE_TYPE = 23,
    TAG_HOSTNAME = 24,
    TAG_NAMESERVER = 25,
    TAG_MAC = 26,
    TAG_ADDRESS = 27,
    TAG_GATEWAY = 28,
    TAG_MTU = 29,
    TAG_INTERFACE = 30,
    TAG_ROOT_SERIAL = 31,
    TAG_DATA_SERIAL = 32,
    TAG_PIDS = 33,
    TAG_ENTROPY = 34,
    TAG_TIME_NS = 35,
    TAG_PHASE = 36,
    TAG_PID = 37,
    TAG_STARTED_NS = 38,
    TAG_FINISHED_NS = 39,
    TAG_LOG_START = 40,
    TAG_LOG_END = 41,
    TAG_LOG_ACKNOWLEDGED = 42,
    TAG_OFFSET = 43,
    TAG_CPU_US = 44,
    TAG_MEMORY = 45,
    TAG_MEMORY_TOTAL = 46,
    TAG_PROCESSES = 47,
    TAG_DISK_USED = 48,
    TAG_RECEIVED = 49,
    TAG_SENT = 50,
    TAG_VERSION = 51,
    TAG_AGENT_MODE = 52,
    TAG_KERNEL = 53,
    TAG_REBOOT = 54,
    TAG_SERIAL = 55,
    TAG_FILESYSTEM = 56,
    TAG_READ_ONLY = 57,
    TAG_COUNT = 58,
    TAG_HELD = 59,
    TAG_PLACE = 60,
    TAG_ADDRESS6 = 61,
    TAG_GATEWAY6 = 62,
    TAG_FORMER_MAC = 63,
    TAG_DROP_NETWORK = 64,
};

enum file_type { FILE_REGULAR = 0, FILE_DIRECTORY = 1, FILE_SYMLINK = 2, FILE_OTHER = 3 };
enum phase { PHASE_WAITING = 0, PHASE_READY = 1, PHASE_RUNNING = 2, PHASE_EXITED = 3, PHASE_MACHINE = 4 };

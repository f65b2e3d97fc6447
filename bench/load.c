/* The load of the benchmark: an upstream and its clients in one thread, with the relay under test between them.
 *
 *   client sockets --masked frames--> relay --> upstream sockets
 *   client sockets <-- relay <--unmasked frames-- upstream sockets
 *
 * One process plays both ends, so that one frame can be in flight per session without a timer: what makes the upstream
 * write frame k+1 is that the client has read frame k. It knows what it has sent, so every frame is compared byte for
 * byte with what was sent, in order, both ways. With no relay between (`--relay-port` = the upstream's own port) it
 * tells how fast it is itself.
 *
 * All of it is written to be cheap, not general: no fragments, no compression, no TLS.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* --- settings ---------------------------------------------------------------------------------------------------- */

enum mode { STEPPED, BURST, TURN, FULL, IDLE, CHURN, LATENCY, PROBE, FAILOVER };
static const char *const MODE_NAMES[] = {"stepped", "burst", "turn", "full", "idle", "churn", "latency", "probe", "failover"};

static struct {
    enum mode mode;
    int sessions, turns, warm, frames, input, answer, core, listen_port, relay_port, stall;
    int then_input;   /* bytes that a measured turn sends up, if other than those of the warm ones */
    int refuse_every; /* the upstream answers every so many measured turns once that the quota of the key is gone */
    int coming;       /* so many sessions, the first ones that work, come and go: connect, a turn, close */
    double seconds;
    const char *key; /* the client's key, for relays that ask for one */
    const char *pids, *also;
    bool chained; /* turns continue each other by previous_response_id */
    bool steps;   /* one frame in flight */
    int spin;     /* never sleep while measuring */
    bool held;    /* after the warm turns, do as standard input says */
    bool lenient; /* JSON may be written anew on the way: see same_json */
} opt = {.mode = STEPPED, .warm = 1, .core = -1, .stall = 20, .chained = true, .spin = 1};

/* --- counting ---------------------------------------------------------------------------------------------------- */

static struct {
    uint64_t frames, turns, connects;
    uint64_t bad_up, bad_down, lost, refused, stalled, undone;
} count;

#define BUCKETS 400000 /* of 0.5 us: up to 200 ms, the last one takes the rest */
struct histogram {
    uint32_t bucket[BUCKETS];
    uint64_t n, max;
};
static struct histogram of_frame, of_first, of_turn, of_moved, of_last, of_connect;

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void note(struct histogram *h, uint64_t ns) {
    uint64_t at = ns / 500;
    h->bucket[at < BUCKETS ? at : BUCKETS - 1]++;
    h->n++;
    if (ns > h->max) h->max = ns;
}

static double quantile_us(const struct histogram *h, double q) {
    uint64_t want = (uint64_t)(q * (double)h->n), seen = 0;
    for (int i = 0; i < BUCKETS; i++)
        if ((seen += h->bucket[i]) > want) return i == BUCKETS - 1 ? (double)h->max / 1e3 : (i + 0.5) * 0.5;
    return 0;
}

/* On-CPU nanoseconds of some processes, all threads: what the scheduler says, at its full resolution. */
static uint64_t cpu_ns_of(const char *pids) {
    uint64_t total = 0;
    for (const char *p = pids; p && *p; p = strchr(p, ',') ? strchr(p, ',') + 1 : NULL) {
        char path[320];
        snprintf(path, sizeof path, "/proc/%d/task", atoi(p));
        DIR *tasks = opendir(path);
        if (!tasks) continue;
        for (struct dirent *e; (e = readdir(tasks));) {
            unsigned long long ran = 0;
            if (e->d_name[0] == '.') continue;
            snprintf(path, sizeof path, "/proc/%d/task/%s/schedstat", atoi(p), e->d_name);
            FILE *f = fopen(path, "r");
            if (f && fscanf(f, "%llu", &ran) == 1) total += ran;
            if (f) fclose(f);
        }
        closedir(tasks);
    }
    return total;
}

static void die(const char *what) {
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    exit(2);
}

/* The first few faults in words; the rest only counts. */
static void complain(uint64_t *counter, const char *format, ...) {
    if (*counter < 3) {
        va_list args;
        va_start(args, format);
        fputs("load: ", stderr);
        vfprintf(stderr, format, args);
        fputc('\n', stderr);
        va_end(args);
    }
    ++*counter;
}

/* --- what is sent ------------------------------------------------------------------------------------------------ */

/* A text with numbers of six digits that are written over: s the session, t the turn, q the frame. */
struct template {
    char *text;
    size_t len, s[4], t[4], q[2];
    int ns, nt, nq;
};

static void six(char *at, unsigned n) {
    for (int i = 5; i >= 0; i--, n /= 10) at[i] = (char)('0' + n % 10);
}

/* `@S@@@@`, `@T@@@@`, `@Q@@@@` mark the places. */
static struct template make_template(const char *text) {
    struct template made = {.text = strdup(text), .len = strlen(text)};
    for (char *p = made.text; (p = strchr(p, '@')); p += 6) {
        size_t at = (size_t)(p - made.text);
        if (p[1] == 'S') made.s[made.ns++] = at;
        else if (p[1] == 'T') made.t[made.nt++] = at;
        else made.q[made.nq++] = at;
    }
    return made;
}

static size_t fill(const struct template *from, char *to, int s, int t, int q) {
    memcpy(to, from->text, from->len);
    for (int i = 0; i < from->ns; i++) six(to + from->s[i], (unsigned)s);
    for (int i = 0; i < from->nt; i++) six(to + from->t[i], (unsigned)t);
    for (int i = 0; i < from->nq; i++) six(to + from->q[i], 100000u + (unsigned)q); /* a number has no leading zero */
    return from->len;
}

static struct template created, in_progress, delta, item_done, completed, create, create_next, create_small;
static size_t largest;

static char *padding(int length) {
    char *made = malloc((size_t)length + 1);
    for (int i = 0; i < length; i++) made[i] = "the quick brown fox jumps over a lazy dog, "[i % 43];
    made[length] = 0;
    return made;
}

static struct template templatef(const char *format, ...) {
    char *text;
    va_list args;
    va_start(args, format);
    if (vasprintf(&text, format, args) < 0) die("memory");
    va_end(args);
    struct template made = make_template(text);
    free(text);
    return made;
}

static void make_templates(void) {
    /* ids are new in every run: what a relay has kept of an earlier run must not be taken for this one's */
    char id[64], item[64];
    unsigned run = (unsigned)(now_ns() ^ ((uint64_t)getpid() << 20));
    snprintf(id, sizeof id, "resp_%08x@S@@@@@T@@@@", run);
    snprintf(item, sizeof item, "msg_%08x@S@@@@@T@@@@", run);
    const char *response = "{\"id\":\"%s\",\"object\":\"response\",\"created_at\":1767225600,\"status\":\"%s\",\"error\":null,"
                           "\"incomplete_details\":null,\"instructions\":null,\"max_output_tokens\":null,\"model\":\"m\","
                           "\"output\":[%s],\"parallel_tool_calls\":true,\"previous_response_id\":null,\"reasoning\":"
                           "{\"effort\":\"medium\",\"summary\":null},\"store\":false,\"temperature\":1.0,\"text\":{\"format\":"
                           "{\"type\":\"text\"}},\"tool_choice\":\"auto\",\"tools\":[],\"top_p\":1.0,\"truncation\":\"disabled\","
                           "\"usage\":%s,\"user\":null,\"metadata\":{}}";
    char *answer = padding(opt.answer), *empty, *full, *message;
    if (asprintf(&empty, response, id, "in_progress", "", "null") < 0) die("memory");
    if (asprintf(&message,
                 "{\"id\":\"%s\",\"type\":\"message\",\"status\":\"completed\",\"content\":[{\"type\":\"output_text\","
                 "\"annotations\":[],\"logprobs\":[],\"text\":\"%s\"}],\"role\":\"assistant\"}",
                 item, answer) < 0)
        die("memory");
    if (asprintf(&full, response, id, "completed", message,
                 "{\"input_tokens\":1200,\"input_tokens_details\":{\"cached_tokens\":1024},\"output_tokens\":300,"
                 "\"output_tokens_details\":{\"reasoning_tokens\":64},\"total_tokens\":1500}") < 0)
        die("memory");
    created = templatef("{\"type\":\"response.created\",\"sequence_number\":@Q@@@@,\"response\":%s}", empty);
    in_progress = templatef("{\"type\":\"response.in_progress\",\"sequence_number\":@Q@@@@,\"response\":%s}", empty);
    delta = templatef("{\"type\":\"response.output_text.delta\",\"content_index\":0,\"delta\":\" frame @Q@@@@ of it\","
                      "\"item_id\":\"%s\",\"logprobs\":[],\"obfuscation\":\"aZ3kQ9xLr7\",\"output_index\":0,"
                      "\"sequence_number\":@Q@@@@,\"stream_note\":\"as long as a vendor makes it\"}",
                      item);
    item_done = templatef("{\"type\":\"response.output_item.done\",\"item\":%s,\"output_index\":0,\"sequence_number\":@Q@@@@}",
                          message);
    completed = templatef("{\"type\":\"response.completed\",\"sequence_number\":@Q@@@@,\"response\":%s}", full);

    char *input = padding(opt.input), *previous;
    const char *form = "{\"type\":\"response.create\",\"model\":\"m\",\"store\":false,%s\"input\":[{\"type\":\"message\","
                       "\"role\":\"user\",\"content\":[{\"type\":\"input_text\",\"text\":\"bench s=@S@@@@ t=@T@@@@ %s\"}]}]}";
    create = templatef(form, "", input);
    /* a previous id is that of the turn before: the session's number is the same, the turn's is patched in afterwards */
    if (asprintf(&previous, "\"previous_response_id\":\"%s\",", id) < 0) die("memory");
    create_next = templatef(form, previous, input);
    char *little = padding(opt.then_input);
    create_small = templatef(form, previous, little);
    free(little);
    largest = completed.len + create_next.len + create_small.len + create.len + created.len + 64;
    free(answer), free(empty), free(full), free(message), free(input), free(previous);
}

/* Frame k of a turn: created, in_progress (left out of turns of four frames), deltas, the item, the end. */
static const struct template *kind_of(int k) {
    if (k == 0) return &created;
    if (k == opt.frames - 1) return &completed;
    if (k == opt.frames - 2) return &item_done;
    return k == 1 && opt.frames > 4 ? &in_progress : &delta;
}

static int first_output(void) { return opt.frames > 4 ? 2 : 1; }

/* Whether a session leaves after its turn and comes back as a new one; such a session continues nothing. */
static bool comes_and_goes(int s) { return s < opt.coming; }

static size_t build_create(char *to, int s, int t, bool small) {
    bool next = opt.chained && t > 0 && !comes_and_goes(s);
    const struct template *from = !next ? &create : small ? &create_small : &create_next;
    size_t len = fill(from, to, s, t, 0);
    if (next) six(to + from->t[0], (unsigned)(t - 1));
    return len;
}

/* --- sockets ----------------------------------------------------------------------------------------------------- */

enum side { LISTENER, CLIENT, UPSTREAM };
enum state { CONNECTING, UPGRADING, OPEN, CLOSING };

struct conn {
    int fd, session;
    enum side side;
    enum state state;
    bool watched_out;
    char *in, *out;
    size_t in_len, in_cap, out_at, out_len, out_cap;
    uint64_t began;
    struct conn *next_dead;
};

struct session {
    struct conn *client, *upstream;
    int turn, written, read, until; /* `until`: turns it may begin */
    uint64_t asked_at, written_at;
    char *sent; /* the create frame under way */
    size_t sent_len;
    bool busy, over;
    bool waits; /* the upstream has its request and is to say nothing yet */
    int refused; /* the turn that the upstream has refused once, + 1 */
};

static int poller;
static struct session *sessions;
static struct conn *dead;
static int opening, opened, busy, next_to_open;
static bool measuring, ending, asking;
static uint64_t deadline, looked_at, idle_ns; /* `idle_ns`: spent looking for events that were not there yet */
static char scratch[1 << 18], *big, *frame_text;

static void watch(struct conn *c, bool out) {
    if (c->watched_out == out) return;
    struct epoll_event e = {.events = EPOLLIN | (out ? EPOLLOUT : 0u), .data.ptr = c};
    if (epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &e)) die("epoll_ctl");
    c->watched_out = out;
}

static struct conn *adopt(int fd, enum side side, enum state state) {
    struct conn *c = calloc(1, sizeof *c);
    *c = (struct conn){.fd = fd, .side = side, .state = state, .session = -1, .watched_out = state == CONNECTING};
    struct epoll_event e = {.events = EPOLLIN | (c->watched_out ? EPOLLOUT : 0u), .data.ptr = c};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e)) die("epoll_ctl");
    return c;
}

/* Freed after the round of events: another event of the same round may still name it. */
static void drop(struct conn *c) {
    if (c->fd < 0) return;
    close(c->fd);
    c->fd = -1;
    if (c->session >= 0) {
        struct session *s = &sessions[c->session];
        if (s->client == c) s->client = NULL;
        if (s->upstream == c) s->upstream = NULL;
    }
    c->next_dead = dead;
    dead = c;
}

static void bury(void) {
    while (dead) {
        struct conn *c = dead;
        dead = c->next_dead;
        free(c->in), free(c->out), free(c);
    }
}

static void reserve(char **buffer, size_t *cap, size_t need) {
    if (*cap >= need) return;
    *cap = need + need / 4 + 256;
    if (!(*buffer = realloc(*buffer, *cap))) die("memory");
}

static void put(struct conn *c, const char *data, size_t len) {
    if (c->fd < 0) return;
    if (c->out_at == c->out_len) {
        ssize_t n = write(c->fd, data, len);
        if (n < 0 && errno != EAGAIN) return; /* the reading side will see the end */
        if (n > 0) data += n, len -= (size_t)n;
        c->out_at = c->out_len = 0;
    }
    if (!len) return;
    reserve(&c->out, &c->out_cap, c->out_len + len);
    memcpy(c->out + c->out_len, data, len);
    c->out_len += len;
    watch(c, true);
}

static void flush_out(struct conn *c) {
    while (c->out_at < c->out_len) {
        ssize_t n = write(c->fd, c->out + c->out_at, c->out_len - c->out_at);
        if (n <= 0) return;
        c->out_at += (size_t)n;
    }
    c->out_at = c->out_len = 0;
    watch(c, false);
}

/* --- WebSocket --------------------------------------------------------------------------------------------------- */

static const unsigned char MASK[4] = {0x37, 0xfa, 0x21, 0x3d};

static void mask(char *data, size_t len, const unsigned char key[4]) {
    uint64_t word;
    unsigned char twice[8] = {key[0], key[1], key[2], key[3], key[0], key[1], key[2], key[3]};
    memcpy(&word, twice, 8);
    size_t i = 0;
    for (; i + 8 <= len; i += 8) {
        uint64_t at;
        memcpy(&at, data + i, 8);
        at ^= word;
        memcpy(data + i, &at, 8);
    }
    for (; i < len; i++) data[i] = (char)(data[i] ^ key[i & 3]);
}

/* A whole frame into `to`; the payload is masked there. */
static size_t frame(char *to, int opcode, const char *payload, size_t len, bool masked) {
    size_t n = 0;
    to[n++] = (char)(0x80 | opcode);
    if (len < 126) to[n++] = (char)len;
    else if (len < 65536) to[n++] = 126, to[n++] = (char)(len >> 8), to[n++] = (char)len;
    else {
        to[n++] = 127;
        for (int shift = 56; shift >= 0; shift -= 8) to[n++] = (char)(len >> shift);
    }
    if (masked) {
        to[1] = (char)(to[1] | 0x80);
        memcpy(to + n, MASK, 4);
        n += 4;
    }
    memmove(to + n, payload, len);
    if (masked) mask(to + n, len, MASK);
    return n + len;
}

static void send_control(struct conn *c, int opcode, const char *payload, size_t len) {
    char small[160];
    put(c, small, frame(small, opcode, payload, len, c->side == CLIENT));
}

static void sha1(const unsigned char *data, size_t len, unsigned char out[20]) {
    uint32_t h[5] = {0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0}, w[80];
    unsigned char m[192] = {0};
    size_t total = (len + 9 + 63) / 64 * 64;
    memcpy(m, data, len);
    m[len] = 0x80;
    for (int i = 0; i < 8; i++) m[total - 1 - (size_t)i] = (unsigned char)((uint64_t)len * 8 >> (8 * i));
#define ROL(x, n) ((x) << (n) | (x) >> (32 - (n)))
    for (size_t at = 0; at < total; at += 64) {
        for (int i = 0; i < 16; i++)
            w[i] = (uint32_t)m[at + 4 * i] << 24 | (uint32_t)m[at + 4 * i + 1] << 16 | (uint32_t)m[at + 4 * i + 2] << 8 | m[at + 4 * i + 3];
        for (int i = 16; i < 80; i++) w[i] = ROL(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
        uint32_t a = h[0], b = h[1], c = h[2], d = h[3], e = h[4];
        for (int i = 0; i < 80; i++) {
            uint32_t f = i < 20 ? (b & c) | (~b & d) : i < 40 ? b ^ c ^ d : i < 60 ? (b & c) | (b & d) | (c & d) : b ^ c ^ d;
            uint32_t k = i < 20 ? 0x5A827999 : i < 40 ? 0x6ED9EBA1 : i < 60 ? 0x8F1BBCDC : 0xCA62C1D6;
            uint32_t next = ROL(a, 5) + f + e + k + w[i];
            e = d, d = c, c = ROL(b, 30), b = a, a = next;
        }
        h[0] += a, h[1] += b, h[2] += c, h[3] += d, h[4] += e;
    }
    for (int i = 0; i < 20; i++) out[i] = (unsigned char)(h[i / 4] >> (24 - 8 * (i % 4)));
}

static void accept_key(const char *key, size_t len, char out[29]) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    unsigned char text[128], d[21] = {0};
    if (len > 64) len = 64;
    memcpy(text, key, len);
    memcpy(text + len, "258EAFA5-E914-47DA-95CA-C5AB0DC85B11", 36);
    sha1(text, len + 36, d);
    for (int i = 0, o = 0; i < 21; i += 3) {
        uint32_t v = (uint32_t)d[i] << 16 | (uint32_t)d[i + 1] << 8 | d[i + 2];
        for (int j = 18; j >= 0; j -= 6) out[o++] = digits[v >> j & 63];
    }
    out[27] = '=', out[28] = 0;
}

/* --- the upstream ------------------------------------------------------------------------------------------------ */

/* The same JSON but for the space between its parts and, where `ids` are the relay's own, the ids of responses. The order
 * of keys and every other name, number and text are compared. Nothing that is sent here has a quote within a text. */
static bool same_json(const char *a, size_t a_len, const char *b, size_t b_len, bool ids) {
    bool inside = false;
    for (size_t i = 0, j = 0;; i++, j++) {
        while (!inside && i < a_len && a[i] == ' ') i++;
        while (!inside && j < b_len && b[j] == ' ') j++;
        if (i == a_len || j == b_len) return i == a_len && j == b_len;
        if (a[i] != b[j]) return false;
        if (a[i] != '"') continue;
        inside = !inside;
        if (!ids || !inside || a_len - i < 7 || b_len - j < 7 || memcmp(a + i, "\"resp_", 6) || memcmp(b + j, "\"resp_", 6)) continue;
        while (i + 1 < a_len && a[i + 1] != '"') i++;
        while (j + 1 < b_len && b[j + 1] != '"') j++;
    }
}

static bool same(const char *a, size_t a_len, const char *b, size_t b_len, bool ids) {
    return (a_len == b_len && !memcmp(a, b, a_len)) || (opt.lenient && same_json(a, a_len, b, b_len, ids));
}

/* Write the frames from `written` up to and without `until`, in one write. */
static void upstream_write(struct session *s, int until) {
    size_t n = 0;
    int number = (int)(s - sessions);
    if (!s->upstream) return;
    for (; s->written < until; s->written++) {
        const struct template *kind = kind_of(s->written);
        if (n + kind->len + 16 > sizeof scratch) {
            put(s->upstream, scratch, n);
            n = 0;
        }
        size_t len = fill(kind, frame_text, number, s->turn, s->written);
        n += frame(scratch + n, 1, frame_text, len, false);
    }
    s->written_at = now_ns();
    put(s->upstream, scratch, n);
}

static void upstream_took(struct conn *c, const char *payload, size_t len) {
    /* the last marker counts: a rebuilt conversation holds those of the turns before */
    const char *mark = NULL;
    int marks = 0, in_order = 0;
    for (const char *p = payload; (p = memmem(p, len - (size_t)(p - payload), "bench s=", 8)); p += 8, marks++) {
        mark = p;
        in_order += atoi(p + 17) == marks;
        if (opt.mode != FAILOVER) break;
    }
    int number = mark ? atoi(mark + 8) : -1, turn = mark ? atoi(mark + 17) : -1;
    if (number < 0 || number >= opt.sessions || !sessions[number].busy || sessions[number].turn != turn) {
        complain(&count.bad_up, "the upstream got a request that nobody sent: %.*s", (int)(len < 200 ? len : 200), payload);
        return;
    }
    struct session *s = &sessions[number];
    bool rebuilt = opt.mode == FAILOVER && marks == turn + 1 && in_order == marks;
    if (!rebuilt && !same(s->sent, s->sent_len, payload, len, false))
        complain(&count.bad_up, "session %d turn %d: the request has changed: %.*s", number, turn, (int)(len < 300 ? len : 300), payload);
    if (measuring && opt.refuse_every && turn % opt.refuse_every == 0 && s->refused != turn + 1) {
        s->refused = turn + 1;
        static const char gone[] = "{\"type\":\"error\",\"status\":429,\"error\":{\"type\":\"usage_limit_reached\",\"code\":"
                                   "\"usage_limit_reached\",\"message\":\"The usage limit has been reached\",\"resets_in_seconds\":3600}}";
        size_t n = frame(scratch, 1, gone, sizeof gone - 1, false);
        put(c, scratch, n);
        return;
    }
    c->session = number;
    s->upstream = c;
    s->written = 0;
    if (asking) s->waits = true;
    else upstream_write(s, opt.steps ? first_output() + 1 : opt.frames);
}

/* --- the clients ------------------------------------------------------------------------------------------------- */

static void client_ask(struct session *s) {
    if (!s->client) return;
    int number = (int)(s - sessions);
    if (!s->sent && !(s->sent = malloc(largest))) die("memory");
    s->sent_len = build_create(s->sent, number, s->turn, measuring && opt.then_input);
    s->busy = true;
    s->read = 0;
    busy++;
    size_t n = frame(big, 1, s->sent, s->sent_len, true);
    s->asked_at = now_ns();
    put(s->client, big, n);
}

static void open_client(int number);

static void turn_ended(struct session *s, uint64_t at) {
    s->busy = false;
    busy--;
    if (measuring) {
        count.turns++;
        note(s->refused == s->turn + 1 ? &of_moved : &of_turn, at - s->asked_at);
    }
    s->turn++;
    if (!measuring || s->turn >= s->until || (deadline && at >= deadline)) {
        s->over = true;
        return;
    }
    if (comes_and_goes((int)(s - sessions))) {
        static const char normal[2] = {0x03, (char)0xe8};
        s->client->state = CLOSING;
        send_control(s->client, 8, normal, 2);
        busy++; /* until it is there again */
        return;
    }
    client_ask(s);
}

static void client_took(struct conn *c, const char *payload, size_t len, uint64_t at) {
    struct session *s = &sessions[c->session];
    if (!s->busy) {
        complain(&count.bad_down, "session %d: a frame nobody waits for: %.*s", c->session, (int)(len < 200 ? len : 200), payload);
        return;
    }
    int k = s->read;
    size_t expected = fill(kind_of(k), frame_text, c->session, s->turn, k);
    if (k >= s->written || !same(frame_text, expected, payload, len, true))
        complain(&count.bad_down, "session %d turn %d frame %d differs: %.*s", c->session, s->turn, k, (int)(len < 300 ? len : 300), payload);
    s->read++;
    if (measuring) {
        count.frames++;
        if (k == first_output()) note(&of_first, at - s->asked_at);
        else if (k > first_output() && k < opt.frames - 2 && opt.steps) note(&of_frame, at - s->written_at);
        else if (k == opt.frames - 1) note(&of_last, at - s->written_at);
    }
    if (s->read == opt.frames) turn_ended(s, at);
    else if (opt.steps && s->read == s->written && s->upstream) upstream_write(s, s->written + 1);
}

static void client_open(struct conn *c) {
    struct session *s = &sessions[c->session];
    c->state = OPEN;
    opening--;
    opened++;
    note(&of_connect, now_ns() - c->began);
    if (measuring) count.connects++;
    if (comes_and_goes(c->session) && measuring) {
        busy--;
        client_ask(s);
    }
}

static void open_client(int number) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)opt.relay_port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
    if (fd < 0) die("socket");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(fd, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS) die("connect");
    struct conn *c = adopt(fd, CLIENT, CONNECTING);
    c->session = number;
    c->began = now_ns();
    sessions[number].client = c;
    opening++;
}

static void knock(struct conn *c) {
    int failed = 0;
    socklen_t size = sizeof failed;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &failed, &size);
    if (failed) errno = failed, die("connect to the relay");
    c->state = UPGRADING;
    watch(c, false);
    char text[512];
    int n = snprintf(text, sizeof text,
                     "GET /v1/responses HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                     "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n%s%s%s\r\n",
                     opt.relay_port, opt.key ? "Authorization: Bearer " : "", opt.key ? opt.key : "", opt.key ? "\r\n" : "");
    put(c, text, (size_t)n);
}

/* --- what comes in ----------------------------------------------------------------------------------------------- */

/* Find a header's value; names are compared without case. */
static const char *header(const char *head, size_t len, const char *name, size_t *value_len) {
    size_t n = strlen(name);
    for (const char *line = head; (line = memmem(line, len - (size_t)(line - head), "\r\n", 2));) {
        line += 2;
        if ((size_t)(head + len - line) > n && !strncasecmp(line, name, n) && line[n] == ':') {
            const char *value = line + n + 1;
            while (*value == ' ') value++;
            *value_len = (size_t)((const char *)memmem(value, len - (size_t)(value - head), "\r\n", 2) - value);
            return value;
        }
    }
    return NULL;
}

static void take_upgrade(struct conn *c, const char *head, size_t len) {
    if (c->side == CLIENT) {
        if (len < 12 || memcmp(head + 9, "101", 3)) {
            fprintf(stderr, "load: the relay refused: %.*s\n", (int)(len < 300 ? len : 300), head);
            exit(2);
        }
        client_open(c);
        return;
    }
    size_t key_len = 0;
    const char *key = header(head, len, "Sec-WebSocket-Key", &key_len);
    if (!key) {
        /* somebody asks for something else, a probe of the relay perhaps */
        static const char no[] = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        put(c, no, sizeof no - 1);
        drop(c);
        return;
    }
    char accept[29], text[256];
    accept_key(key, key_len, accept);
    int n = snprintf(text, sizeof text, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n", accept);
    c->state = OPEN;
    put(c, text, (size_t)n);
}

static void take_frame(struct conn *c, int opcode, char *payload, size_t len, uint64_t at) {
    switch (opcode) {
    case 1:
        if (c->side == UPSTREAM) upstream_took(c, payload, len);
        else client_took(c, payload, len, at);
        break;
    case 8:
        if (c->state == OPEN && c->side == CLIENT && !ending) complain(&count.lost, "session %d: the relay closed: %.*s", c->session, (int)(len > 2 ? len - 2 : 0), payload + 2);
        if (c->state != CLOSING) send_control(c, 8, payload, len < 2 ? 0 : 2);
        c->state = CLOSING;
        if (c->side == UPSTREAM) drop(c); /* a server closes first (RFC 6455, 7.1.1) */
        break;
    case 9: send_control(c, 10, payload, len); break;
    case 10: break;
    default: complain(&count.bad_down, "an opcode of %d", opcode);
    }
}

/* One unit of `data`, an upgrade or a frame: its length, or 0 if it is not all there. `*need`: bytes it will have. */
static size_t take_one(struct conn *c, char *data, size_t len, uint64_t at, size_t *need) {
    if (c->state == UPGRADING) {
        char *end = memmem(data, len, "\r\n\r\n", 4);
        if (!end) return 0;
        take_upgrade(c, data, (size_t)(end - data) + 4);
        return (size_t)(end - data) + 4;
    }
    if (len < 2) return 0;
    unsigned char *h = (unsigned char *)data;
    bool masked = h[1] & 0x80;
    size_t head = 2, size = h[1] & 0x7f;
    if (size == 126) {
        if (len < 4) return 0;
        size = (size_t)h[2] << 8 | h[3], head = 4;
    } else if (size == 127) {
        if (len < 10) return 0;
        size = 0, head = 10;
        for (int i = 2; i < 10; i++) size = size << 8 | h[i];
    }
    if (masked) head += 4;
    if (len < head + size) {
        *need = head + size;
        return 0;
    }
    if ((h[0] & 0xf0) != 0x80 || masked != (c->side == UPSTREAM)) {
        complain(&count.bad_down, "a frame that starts with %02x %02x", h[0], h[1]);
        drop(c);
        return 0;
    }
    if (masked) mask(data + head, size, h + head - 4);
    take_frame(c, h[0] & 15, data + head, size, at);
    return head + size;
}

static void gone(struct conn *c) {
    int number = c->session;
    bool client = c->side == CLIENT, expected = c->state == CLOSING || ending;
    drop(c);
    if (!client) return;
    if (expected && comes_and_goes(number) && !ending) open_client(number);
    else if (!expected) {
        complain(&count.lost, "session %d: the relay has gone", number);
        if (sessions[number].busy) busy--;
        sessions[number].busy = false;
        sessions[number].over = true;
    }
}

static void readable(struct conn *c) {
    static char shared[1 << 18];
    char *data = shared;
    size_t room = sizeof shared, have = c->in_len, need = 0;
    if (have) {
        if (c->in_cap < have + 65536) reserve(&c->in, &c->in_cap, have + 65536);
        data = c->in;
        room = c->in_cap;
    }
    ssize_t n = read(c->fd, data + have, room - have);
    if (n <= 0) {
        if (n == 0 || errno != EAGAIN) gone(c);
        return;
    }
    uint64_t at = now_ns();
    have += (size_t)n;
    size_t done = 0, one;
    while (done < have && c->fd >= 0 && (one = take_one(c, data + done, have - done, at, &need))) done += one;
    if (c->fd < 0) return;
    have -= done;
    if (have) {
        char *from = data + done;
        if (data == c->in) memmove(c->in, from, have);
        else {
            reserve(&c->in, &c->in_cap, need > have ? need : have);
            memcpy(c->in, from, have);
        }
        if (need) reserve(&c->in, &c->in_cap, need);
    }
    c->in_len = have;
}

static void accept_all(struct conn *listener) {
    for (;;) {
        int fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK), on = 1;
        if (fd < 0) return;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        adopt(fd, UPSTREAM, UPGRADING);
    }
}

/* While measuring it never sleeps: the kernel charges whoever wakes a sleeping process for the wake-up, which on a
 * virtual machine costs more than relaying a frame, and only relays that keep the load waiting would pay for it. */
static void run_once(int timeout_ms) {
    struct epoll_event events[256];
    int n = epoll_wait(poller, events, 256, measuring && opt.spin ? 0 : timeout_ms);
    if (n <= 0) {
        if (measuring && opt.spin) sched_yield(); /* the store has this core, too */
        bury();
        uint64_t now = now_ns();
        idle_ns += now - looked_at;
        looked_at = now;
        return;
    }
    for (int i = 0; i < n; i++) {
        struct conn *c = events[i].data.ptr;
        if (c->fd < 0) continue;
        if (c->side == LISTENER) {
            accept_all(c);
            continue;
        }
        if (c->state == CONNECTING) {
            if (events[i].events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) knock(c);
            continue;
        }
        if (events[i].events & EPOLLOUT) flush_out(c);
        if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) readable(c);
    }
    bury();
    looked_at = now_ns();
}

/* --- the run ----------------------------------------------------------------------------------------------------- */

static void listen_upstream(void) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)opt.listen_port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&at, sizeof at) || listen(fd, 4096)) die("listen");
    adopt(fd, LISTENER, OPEN);
}

/* Run until nothing is under way; false if for `stall` seconds nothing has moved. */
static bool settle(void) {
    uint64_t seen = ~0ull, since = now_ns();
    while (opening || busy || next_to_open < opt.sessions) {
        while (next_to_open < opt.sessions && opening < 64) open_client(next_to_open++); /* no flood of the backlog */
        run_once(100);
        uint64_t moved = count.frames + count.connects + (uint64_t)opened + (uint64_t)busy;
        for (int i = 0; i < opt.sessions && !measuring; i += 1 + opt.sessions / 16) moved += (uint64_t)sessions[i].read;
        if (moved != seen) seen = moved, since = now_ns();
        else if (now_ns() - since > (uint64_t)opt.stall * 1000000000ull) {
            for (int i = 0; i < opt.sessions; i++)
                if (sessions[i].busy)
                    complain(&count.stalled, "session %d stalls in turn %d: %d of %d frames written, %d read", i,
                             sessions[i].turn, sessions[i].written, opt.frames, sessions[i].read);
            return false;
        }
    }
    return true;
}

static bool turns_of(int from, int to, int turns) {
    for (int i = from; i < to; i++) {
        sessions[i].until = sessions[i].turn + turns;
        sessions[i].over = false;
        client_ask(&sessions[i]);
    }
    return settle();
}

/* Clients leave as they should, and the upstream stays until the relay has let go of it: nobody has lost anything. */
static void leave(void) {
    static const char normal[2] = {0x03, (char)0xe8};
    ending = true;
    for (int i = 0; i < opt.sessions; i++)
        if (sessions[i].client && sessions[i].client->state == OPEN) {
            sessions[i].client->state = CLOSING;
            send_control(sessions[i].client, 8, normal, 2);
        }
    for (uint64_t until = now_ns() + 3000000000ull; now_ns() < until;) {
        int left = 0;
        for (int i = 0; i < opt.sessions; i++) left += sessions[i].client || sessions[i].upstream;
        if (!left) return;
        run_once(20);
    }
}

static void print_times(const char *name, const struct histogram *h) {
    if (h->n)
        printf(",\"%s\":{\"n\":%llu,\"p50\":%.1f,\"p90\":%.1f,\"p99\":%.1f,\"max\":%.1f}", name, (unsigned long long)h->n,
               quantile_us(h, 0.50), quantile_us(h, 0.90), quantile_us(h, 0.99), (double)h->max / 1e3);
}

static void forget_times(void) {
    struct histogram *const all[] = {&of_frame, &of_first, &of_turn, &of_moved, &of_last, &of_connect};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) memset(all[i], 0, sizeof *all[i]);
}

/* The first `some` sessions work for so long, the first `coming` of them as new ones every time; the others wait. */
static bool work(int some, int coming, double seconds) {
    uint64_t turns = count.turns, connects = count.connects, began = now_ns();
    forget_times();
    measuring = true;
    opt.coming = coming;
    deadline = began + (uint64_t)(seconds * 1e9);
    bool fine = turns_of(0, some, 900000);
    measuring = false;
    opt.coming = 0;
    printf("{\"turns\":%llu,\"connects\":%llu,\"seconds\":%.4f", (unsigned long long)(count.turns - turns),
           (unsigned long long)(count.connects - connects), (double)(now_ns() - began) / 1e9);
    print_times("first_us", &of_first);
    print_times("turn_us", &of_turn);
    print_times("last_us", &of_last);
    printf("}\n");
    return fine;
}

/* One request goes up, and the upstream takes it and stays silent. */
static bool ask(int number) {
    asking = true;
    client_ask(&sessions[number]);
    for (uint64_t until = now_ns() + (uint64_t)opt.stall * 1000000000ull; !sessions[number].waits && now_ns() < until;) run_once(20);
    asking = false;
    if (!sessions[number].waits) complain(&count.stalled, "session %d: the request does not arrive", number);
    return sessions[number].waits;
}

static bool answer(int number) {
    sessions[number].waits = false;
    upstream_write(&sessions[number], opt.frames);
    return settle();
}

/* One line of whoever holds us: `turns FIRST COUNT N`, `work SOME COMING SECONDS`, `ask SESSION`, `answer SESSION`. */
static bool obey(const char *line) {
    int first, n, turns;
    double seconds;
    bool fine = true;
    if (sscanf(line, "turns %d %d %d", &first, &n, &turns) == 3) {
        for (int i = 0; fine && i < turns; i++) fine = turns_of(first, first + n, 1);
        puts("{}");
    } else if (sscanf(line, "work %d %d %lf", &n, &turns, &seconds) == 3) fine = work(n, turns, seconds);
    else if (sscanf(line, "ask %d", &first) == 1) fine = ask(first), puts("{}");
    else if (sscanf(line, "answer %d", &first) == 1) fine = answer(first), puts("{}");
    else fine = false;
    fflush(stdout);
    return fine;
}

/* Do as standard input says, a line each time, and keep answering pings until it closes: whoever started us looks at the
 * relay. */
static bool hold(void) {
    char line[128];
    size_t have = 0;
    bool fine = true;
    printf("{\"holding\":%d}\n", opt.sessions);
    fflush(stdout);
    fcntl(0, F_SETFL, O_NONBLOCK);
    while (fine) {
        ssize_t n = read(0, line + have, 1);
        if (n == 0 || (n < 0 && errno != EAGAIN)) return true;
        if (n < 0) run_once(5);
        else if (line[have] == '\n' || have == sizeof line - 2) line[have] = 0, have = 0, fine = obey(line);
        else have++;
    }
    return false;
}

static int option(const char *name, const char *value) {
    if (!strcmp(name, "--mode")) {
        for (size_t i = 0; i < sizeof MODE_NAMES / sizeof *MODE_NAMES; i++)
            if (!strcmp(value, MODE_NAMES[i])) return (int)(opt.mode = (enum mode)i), 1;
        return 0;
    }
    if (!strcmp(name, "--sessions")) opt.sessions = atoi(value);
    else if (!strcmp(name, "--turns")) opt.turns = atoi(value);
    else if (!strcmp(name, "--warm")) opt.warm = atoi(value);
    else if (!strcmp(name, "--frames")) opt.frames = atoi(value);
    else if (!strcmp(name, "--input")) opt.input = atoi(value);
    else if (!strcmp(name, "--answer")) opt.answer = atoi(value);
    else if (!strcmp(name, "--seconds")) opt.seconds = atof(value);
    else if (!strcmp(name, "--core")) opt.core = atoi(value);
    else if (!strcmp(name, "--upstream-port")) opt.listen_port = atoi(value);
    else if (!strcmp(name, "--relay-port")) opt.relay_port = atoi(value);
    else if (!strcmp(name, "--spin")) opt.spin = atoi(value);
    else if (!strcmp(name, "--stall")) opt.stall = atoi(value);
    else if (!strcmp(name, "--key")) opt.key = value;
    else if (!strcmp(name, "--hold")) opt.held = atoi(value);
    else if (!strcmp(name, "--then-input")) opt.then_input = atoi(value);
    else if (!strcmp(name, "--refuse-every")) opt.refuse_every = atoi(value);
    else if (!strcmp(name, "--pids")) opt.pids = value;
    else if (!strcmp(name, "--also")) opt.also = value;
    else if (!strcmp(name, "--lenient")) opt.lenient = atoi(value);
    else return 0;
    return 1;
}

static void defaults(void) {
    static const struct { int sessions, frames, input; } of_mode[] = {
        [STEPPED] = {32, 204, 400}, [BURST] = {32, 204, 400}, [TURN] = {16, 4, 6144},   [FULL] = {4, 4, 1 << 20},  [IDLE] = {2000, 12, 400},
        [CHURN] = {16, 4, 400},     [LATENCY] = {1, 204, 400}, [PROBE] = {1, 12, 400}, [FAILOVER] = {1, 4, 1 << 16},
    };
    if (!opt.sessions) opt.sessions = of_mode[opt.mode].sessions;
    if (!opt.frames) opt.frames = of_mode[opt.mode].frames;
    if (!opt.input) opt.input = of_mode[opt.mode].input;
    if (!opt.answer) opt.answer = 1000;
    opt.steps = opt.mode == STEPPED || opt.mode == LATENCY || opt.mode == PROBE;
    opt.held = opt.held || opt.mode == IDLE;
    opt.chained = opt.mode != FULL && opt.mode != CHURN;
    if (opt.mode == CHURN) opt.coming = opt.sessions;
    if (!opt.relay_port) opt.relay_port = opt.listen_port;
    if (!opt.turns) opt.turns = opt.seconds > 0 ? 900000 : 10;
    if (opt.frames < 4 || opt.sessions > 999999) exit((fputs("load: at least 4 frames a turn\n", stderr), 2));
}

int main(int argc, char **argv) {
    for (int i = 1; i + 1 < argc; i += 2)
        if (!option(argv[i], argv[i + 1])) return fprintf(stderr, "load: what is %s %s?\n", argv[i], argv[i + 1]), 2;
    defaults();
    signal(SIGPIPE, SIG_IGN);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    if (opt.core >= 0) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(opt.core, &set);
        sched_setaffinity(0, sizeof set, &set);
    }
    make_templates();
    sessions = calloc((size_t)opt.sessions, sizeof *sessions);
    big = malloc(largest + 64);
    frame_text = malloc(largest + 64);
    poller = epoll_create1(0);
    listen_upstream();

    bool fine = settle();
    for (int i = 0; fine && i < opt.warm; i++) fine = turns_of(0, opt.sessions, 1);
    if (fine && opt.held) fine = hold();
    uint64_t cpu = 0, also = 0, began = now_ns(), lasted = 0;
    if (fine && !opt.held) {
        cpu = cpu_ns_of(opt.pids), also = cpu_ns_of(opt.also);
        measuring = true;
        began = looked_at = now_ns();
        idle_ns = 0;
        deadline = opt.seconds > 0 ? began + (uint64_t)(opt.seconds * 1e9) : 0;
        fine = turns_of(0, opt.sessions, opt.turns);
        lasted = now_ns() - began;
        cpu = cpu_ns_of(opt.pids) - cpu, also = cpu_ns_of(opt.also) - also;
        measuring = false;
    }
    if (fine) leave();
    double own = (double)(lasted - idle_ns) / 1e9;
    uint64_t errors = count.bad_up + count.bad_down + count.lost + count.stalled;
    printf("{\"mode\":\"%s\",\"sessions\":%d,\"frames_per_turn\":%d,\"frames\":%llu,\"turns\":%llu,\"connects\":%llu,\"seconds\":%.4f,"
           "\"own_cpu_s\":%.4f,\"cpu_ns\":%llu,\"also_ns\":%llu",
           MODE_NAMES[opt.mode], opt.sessions, opt.frames, (unsigned long long)count.frames, (unsigned long long)count.turns,
           (unsigned long long)count.connects, (double)lasted / 1e9, own, (unsigned long long)cpu, (unsigned long long)also);
    print_times("frame_us", &of_frame);
    print_times("first_us", &of_first);
    print_times("turn_us", &of_turn);
    print_times("moved_us", &of_moved);
    print_times("last_us", &of_last);
    print_times("connect_us", &of_connect);
    printf(",\"errors\":%llu,\"error_kinds\":{\"bad_up\":%llu,\"bad_down\":%llu,\"lost\":%llu,\"stalled\":%llu}}\n",
           (unsigned long long)errors, (unsigned long long)count.bad_up, (unsigned long long)count.bad_down,
           (unsigned long long)count.lost, (unsigned long long)count.stalled);
    return errors ? 1 : 0;
}

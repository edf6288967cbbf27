#define _GNU_SOURCE
#include "identity.h"

#include <arpa/inet.h>
#include <net/if.h>
#include <stdlib.h>
#include <string.h>

#include "protocol.h"

#define LEAST_ENTROPY 32
#define MOST_ENTROPY (64u << 10)
#define LONGEST_TEXT 255
#define MOST_NAMESERVERS 16
#define MOST_PIDS (4u << 20) /* PID_MAX_LIMIT, linux/threads.h */
#define LEAST_MTU 68

static const uint16_t texts[] = {TAG_HOSTNAME, TAG_INTERFACE, TAG_MAC, TAG_FORMER_MAC, TAG_ADDRESS, TAG_GATEWAY, TAG_ADDRESS6, TAG_GATEWAY6, TAG_NAMESERVER};
static const uint16_t numbers[] = {TAG_TIME_NS, TAG_PIDS, TAG_MTU, TAG_DROP_NETWORK};

/* They become words of files: no blanks, no control characters. */
static bool is_word(struct view value) {
    for (size_t i = 0; i < value.size; i++)
        if (value.data[i] <= ' ' || value.data[i] == 0x7f) return false;
    return value.size <= LONGEST_TEXT;
}

static bool sound(struct view body) {
    struct view value;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        for (size_t at = 0; next_field(body, texts[i], &at, &value);)
            if (!is_word(value)) return false;
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (find_field(body, numbers[i], &value) && value.size != 8) return false;
    return true;
}

static bool is_hostname(const char *text) {
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    size_t size = strlen(text);
    if (!size || size > LARGEST_HOSTNAME || !strchr(letters, *text)) return false;
    for (const char *p = text; *p; p++)
        if (!strchr(letters, *p) && *p != '-' && *p != '.' && *p != '_') return false;
    return true;
}

static bool is_interface(const char *text) { return *text && strlen(text) < IFNAMSIZ && !strchr(text, '/') && !strchr(text, ':') && strcmp(text, ".") != 0 && strcmp(text, "..") != 0; }

/* With prefix: ADDRESS/BITS, else the address alone. */
static bool is_address(int family, const char *text, bool prefix) {
    uint8_t raw[16];
    char address[LONGEST_TEXT + 1], *end;
    size_t size = strcspn(text, "/");
    if ((text[size] == '/') != prefix) return false;
    memcpy(address, text, size);
    address[size] = 0;
    if (inet_pton(family, address, raw) != 1) return false;
    if (!prefix) return true;
    const char *digits = text + size + 1;
    unsigned long bits = strtoul(digits, &end, 10);
    return *digits >= '0' && *digits <= '9' && !*end && bits <= (family == AF_INET ? 32 : 128);
}

static bool is_gateway(int family, const char *text) { return !*text || is_address(family, text, false); }

static const char *check_network(struct identity *identity, bool any) {
    const struct network *n = &identity->network;
    if (identity->drop_network) return any ? "a network is given and dropped at once" : NULL;
    if (!any) return NULL;
    if (!*n->mac || !*n->address) return "a network has an address and a hardware address";
    if (!network_mac(n->mac, NULL)) return "the hardware address is none of one machine (six bytes as 02:00:00:00:00:01)";
    if (!is_address(AF_INET, n->address, true) || (*n->address6 && !is_address(AF_INET6, n->address6, true))) return "an address cannot be read (it is written with its prefix length)";
    if (!is_gateway(AF_INET, n->gateway) || !is_gateway(AF_INET6, n->gateway6)) return "a gateway cannot be read";
    if (*n->gateway6 && !*n->address6) return "a gateway of IPv6 needs an address of IPv6";
    if (n->mtu && (n->mtu < LEAST_MTU || n->mtu > 65535)) return "the MTU is not between 68 and 65535";
    identity->has_network = true;
    return NULL;
}

static const char *check(struct identity *identity, bool any) {
    size_t servers = 0;
    if (identity->entropy.size < LEAST_ENTROPY || identity->entropy.size > MOST_ENTROPY) return "a renewal brings its own entropy: 32 bytes to 64 KiB";
    if (identity->hostname && !is_hostname(identity->hostname)) return "the host name is none: letters, digits, '-', '_' and '.', 64 at most";
    if (identity->former_mac && !network_mac(identity->former_mac, NULL)) return "the former hardware address cannot be read";
    if (*identity->network.interface && !is_interface(identity->network.interface)) return "the interface has a name that none can have";
    for (char **server = identity->nameservers; *server; server++)
        if (++servers > MOST_NAMESERVERS || (!is_address(AF_INET, *server, false) && !is_address(AF_INET6, *server, false))) return "a name server is no address, or there are too many";
    if (identity->pids > MOST_PIDS) return "the bound on processes is larger than a kernel knows";
    return check_network(identity, any);
}

static const char *word(struct view body, uint16_t tag) {
    char *text = find_text(body, tag);
    return text ? text : copy_text("", 0);
}

char *identity_read(struct view body, struct identity *identity) {
    struct view value;
    struct network *n = &identity->network;
    *identity = (struct identity){.nameservers = find_texts(body, TAG_NAMESERVER)};
    n->interface = word(body, TAG_INTERFACE), n->mac = word(body, TAG_MAC);
    n->address = word(body, TAG_ADDRESS), n->gateway = word(body, TAG_GATEWAY);
    n->address6 = word(body, TAG_ADDRESS6), n->gateway6 = word(body, TAG_GATEWAY6);
    if (!sound(body)) return format_text("a field of the renewal cannot be read");
    uint64_t mtu = find_number(body, TAG_MTU, 0);
    n->mtu = mtu > 65535 ? 65536 : (uint32_t)mtu;
    find_field(body, TAG_ENTROPY, &identity->entropy);
    identity->hostname = find_text(body, TAG_HOSTNAME);
    identity->former_mac = find_text(body, TAG_FORMER_MAC);
    identity->time_ns = find_number(body, TAG_TIME_NS, 0);
    identity->drop_network = find_number(body, TAG_DROP_NETWORK, 0);
    identity->has_pids = find_field(body, TAG_PIDS, &value);
    identity->pids = find_number(body, TAG_PIDS, 0);
    bool any = *n->mac || *n->address || *n->gateway || *n->address6 || *n->gateway6 || n->mtu;
    const char *problem = check(identity, any);
    return problem ? copy_text(problem, strlen(problem)) : NULL;
}

void identity_free(struct identity *identity) {
    const struct network *n = &identity->network;
    free((char *)n->interface), free((char *)n->mac);
    free((char *)n->address), free((char *)n->gateway);
    free((char *)n->address6), free((char *)n->gateway6);
    free(identity->hostname), free(identity->former_mac);
    free_texts(identity->nameservers);
    *identity = (struct identity){0};
}

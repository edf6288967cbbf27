#define _GNU_SOURCE
#include "network.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/ipv6.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <net/route.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bytes.h"
#include "netlink.h"

#define SWITCHES "/proc/sys/net/ipv6/conf/%.15s/%s"

bool network_mac(const char *text, uint8_t mac[6]) {
    uint8_t own[6];
    bool any = false;
    if (strlen(text) != 17) return false;
    if (!mac) mac = own;
    for (int i = 0; i < 6; i++) {
        const char *byte = text + 3 * i;
        char *end;
        if (!isxdigit(byte[0]) || !isxdigit(byte[1]) || (byte[2] != ':' && byte[2])) return false;
        mac[i] = (uint8_t)strtoul(byte, &end, 16);
        any |= mac[i];
    }
    return any && !(mac[0] & 1); /* IEEE 802: the first bit on the wire says that it is a group's */
}

/* The interface with this hardware address, else the first that is not the loopback. */
static bool find_interface(const char *mac, char name[IFNAMSIZ]) {
    DIR *directory = opendir("/sys/class/net");
    struct dirent *entry;
    bool exact = false;
    *name = 0;
    while (directory && !exact && (entry = readdir(directory))) {
        char path[300], address[32] = "";
        if (entry->d_name[0] == '.' || strcmp(entry->d_name, "lo") == 0 || strlen(entry->d_name) >= IFNAMSIZ) continue;
        snprintf(path, sizeof path, "/sys/class/net/%.16s/address", entry->d_name);
        FILE *file = fopen(path, "re");
        if (file && fgets(address, sizeof address, file)) exact = strncasecmp(address, mac, 17) == 0;
        if (file) fclose(file);
        if (exact || !*name) snprintf(name, IFNAMSIZ, "%.15s", entry->d_name);
    }
    if (directory) closedir(directory);
    return *name;
}

static bool set_flags(int s, struct ifreq *request, bool up) {
    if (ioctl(s, SIOCGIFFLAGS, request) < 0) return false;
    request->ifr_flags = (short)(up ? request->ifr_flags | IFF_UP : request->ifr_flags & ~IFF_UP);
    return ioctl(s, SIOCSIFFLAGS, request) == 0;
}

static struct sockaddr socket_address(struct in_addr address) {
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr = address};
    struct sockaddr plain;
    memcpy(&plain, &in, sizeof plain);
    return plain;
}

static bool add_default_route(int s, const char *gateway, char *interface) {
    struct in_addr any = {0}, through;
    if (inet_pton(AF_INET, gateway, &through) != 1) return errno = EINVAL, false;
    struct rtentry route = {.rt_dst = socket_address(any), .rt_genmask = socket_address(any), .rt_gateway = socket_address(through), .rt_flags = RTF_UP | RTF_GATEWAY, .rt_dev = interface};
    return ioctl(s, SIOCADDRT, &route) == 0 || errno == EEXIST;
}

/* A switch of the kernel's IPv6 on this interface; one that is not there leaves things as they are. */
static void put_switch(const char *interface, const char *name, const char *value) {
    char path[128];
    snprintf(path, sizeof path, SWITCHES, interface, name);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0) return;
    (void)!write(fd, value, strlen(value));
    close(fd);
}

/* Addresses are given out once, so nobody looks for duplicates; routes are told, so nobody listens to routers. */
static const char *configure6(const struct network *n) {
    char address[64];
    struct in6_addr through;
    struct ifreq named = {0};
    snprintf(address, sizeof address, "%s", n->address6);
    char *prefix = strchr(address, '/');
    int bits = prefix ? atoi(prefix + 1) : 128;
    if (prefix) *prefix = 0;
    int s = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (s < 0) return "there is no IPv6 in this kernel";
    snprintf(named.ifr_name, IFNAMSIZ, "%.15s", n->interface);
    const char *problem = ioctl(s, SIOCGIFINDEX, &named) < 0 ? "the interface has no number" : NULL;
    struct in6_ifreq request = {.ifr6_prefixlen = (uint32_t)bits, .ifr6_ifindex = named.ifr_ifindex};
    struct in6_rtmsg route = {.rtmsg_metric = 1, .rtmsg_flags = RTF_UP | RTF_GATEWAY, .rtmsg_ifindex = named.ifr_ifindex};
    if (!problem && (inet_pton(AF_INET6, address, &request.ifr6_addr) != 1 || bits < 0 || bits > 128)) {
        errno = EINVAL;
        problem = "the address of IPv6 cannot be read";
    }
    if (!problem && ioctl(s, SIOCSIFADDR, &request) < 0 && errno != EEXIST) problem = "the address of IPv6 was refused";
    if (!problem && *n->gateway6) {
        if (inet_pton(AF_INET6, n->gateway6, &through) != 1) {
            errno = EINVAL;
            problem = "the gateway of IPv6 cannot be read";
        } else {
            route.rtmsg_gateway = through;
            if (ioctl(s, SIOCADDRT, &route) < 0 && errno != EEXIST) problem = "the default route of IPv6 was refused";
        }
    }
    close(s);
    return problem;
}

char *network_loopback(void) {
    struct ifreq request = {.ifr_name = "lo"};
    int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    char *problem = s >= 0 && set_flags(s, &request, true) ? NULL : format_text("lo did not come up: %s", strerror(errno));
    if (s >= 0) close(s);
    return problem;
}

static bool set_mac(int s, struct ifreq *request, const uint8_t mac[6]) {
    request->ifr_hwaddr.sa_family = ARPHRD_ETHER;
    memcpy(request->ifr_hwaddr.sa_data, mac, 6);
    return ioctl(s, SIOCSIFHWADDR, request) == 0;
}

/* Address, MTU and routes of an interface that has none. */
static const char *settle(int s, struct ifreq *request, const struct network *n) {
    char address[64];
    struct in_addr local, mask;
    request->ifr_mtu = (int)n->mtu;
    if (n->mtu && ioctl(s, SIOCSIFMTU, request) < 0) return "the MTU was refused";
    snprintf(address, sizeof address, "%s", n->address);
    char *prefix = strchr(address, '/');
    int bits = prefix ? atoi(prefix + 1) : 32;
    if (prefix) *prefix = 0;
    if (inet_pton(AF_INET, address, &local) != 1 || bits < 0 || bits > 32) return errno = EINVAL, "the address cannot be read";
    mask.s_addr = bits ? htonl(0xffffffffu << (32 - bits)) : 0;
    request->ifr_addr = socket_address(local);
    if (ioctl(s, SIOCSIFADDR, request) < 0) return "the address was refused";
    request->ifr_netmask = socket_address(mask);
    if (ioctl(s, SIOCSIFNETMASK, request) < 0) return "the prefix length was refused";
    put_switch(n->interface, "accept_ra", "0");
    put_switch(n->interface, "accept_dad", "0");
    if (!set_flags(s, request, true)) return "the interface did not come up";
    if (*n->gateway && !add_default_route(s, n->gateway, request->ifr_name)) return "the default route was refused";
    return *n->address6 ? configure6(n) : NULL;
}

static const char *configure(int s, const struct network *n) {
    struct ifreq request = {0};
    uint8_t mac[6];
    if (!find_interface(n->mac, request.ifr_name)) return errno = ENODEV, "there is no interface";
    if (!set_flags(s, &request, false)) return "the interface could not be taken down";
    if (strcmp(request.ifr_name, n->interface) != 0) {
        snprintf(request.ifr_newname, IFNAMSIZ, "%.15s", n->interface);
        if (ioctl(s, SIOCSIFNAME, &request) < 0) return "the interface could not be renamed";
        snprintf(request.ifr_name, IFNAMSIZ, "%.15s", n->interface);
    }
    if (*n->mac) {
        if (!network_mac(n->mac, mac)) return errno = EINVAL, "the hardware address cannot be read";
        if (!set_mac(s, &request, mac)) return "the hardware address was refused";
    }
    return settle(s, &request, n);
}

char *network_configure(const struct network *n) {
    int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    const char *problem = s < 0 ? "there is no IPv4 in this kernel" : configure(s, n);
    char *sentence = problem ? format_text("%s: %s (%s)", n->interface, problem, strerror(errno)) : NULL;
    if (s >= 0) close(s);
    return sentence;
}

/* The first interface with a device behind it (not a bridge or a VLAN, which may share its address) that has this hardware address or, with
   mac NULL, this name; with neither, the only one. */
static bool find_device(const char *mac, const char *wanted, char name[IFNAMSIZ]) {
    DIR *directory = opendir("/sys/class/net");
    struct dirent *entry;
    unsigned found = 0;
    *name = 0;
    while (directory && (entry = readdir(directory))) {
        char path[300], address[32] = "";
        snprintf(path, sizeof path, "/sys/class/net/%.200s/device", entry->d_name);
        if (entry->d_name[0] == '.' || strlen(entry->d_name) >= IFNAMSIZ || access(path, F_OK) < 0) continue;
        if (mac) {
            snprintf(path, sizeof path, "/sys/class/net/%.200s/address", entry->d_name);
            FILE *file = fopen(path, "re");
            if (!file || !fgets(address, sizeof address, file)) *address = 0;
            if (file) fclose(file);
            if (strncasecmp(address, mac, 17) != 0) continue;
        } else if (wanted && strcmp(entry->d_name, wanted) != 0) {
            continue;
        }
        if (!found++) snprintf(name, IFNAMSIZ, "%.15s", entry->d_name);
    }
    if (directory) closedir(directory);
    return mac || wanted ? found : found == 1;
}

/* A renewal that failed midway may have given it the new hardware address already. */
static bool find_former(const char *former_mac, const char *mac, const char *interface, char name[IFNAMSIZ]) {
    if (former_mac) return find_device(former_mac, NULL, name) || (*mac && find_device(mac, NULL, name));
    return (*interface && find_device(NULL, interface, name)) || find_device(NULL, NULL, name);
}

static bool has_ipv6(const char *interface) {
    char path[128], value = '1';
    snprintf(path, sizeof path, SWITCHES, interface, "disable_ipv6");
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0) (void)!read(fd, &value, 1), close(fd);
    return value == '0';
}

/* Without IPv6 it has no address, route or neighbour of that family (addrconf_ifdown in net/ipv6/addrconf.c). */
static const char *strip(int s, struct ifreq *request, const uint8_t mac[6]) {
    put_switch(request->ifr_name, "disable_ipv6", "1");
    int problem = netlink_flush(if_nametoindex(request->ifr_name));
    if (problem) return errno = problem, "its addresses could not be taken away";
    if (set_mac(s, request, mac)) return NULL;
    if (errno != EBUSY || !set_flags(s, request, false) || !set_mac(s, request, mac)) return "the hardware address was refused"; /* a driver that wants it down */
    return NULL;
}

static const char *renew(int s, struct ifreq *request, const struct network *n, const char *former_mac) {
    uint8_t mac[6];
    if (!network_mac(n->mac, mac)) return errno = EINVAL, "the hardware address cannot be read";
    if (!find_former(former_mac, n->mac, n->interface, request->ifr_name)) return errno = ENODEV, "there is no such interface";
    bool six = *n->address6 || has_ipv6(request->ifr_name);
    const char *problem = strip(s, request, mac);
    if (six) put_switch(request->ifr_name, "disable_ipv6", "0");
    if (problem) return problem;
    struct network own = *n;
    own.interface = request->ifr_name;
    return settle(s, request, &own);
}

static const char *drop(int s, struct ifreq *request, const char *interface, const char *former_mac) {
    uint8_t mac[6];
    if (getrandom(mac, sizeof mac, 0) != sizeof mac) return "there is no randomness";
    errno = ENODEV;
    mac[0] = (uint8_t)((mac[0] & 0xfe) | 2); /* one machine's, locally administered */
    if (!find_former(former_mac, "", interface, request->ifr_name) && !find_former(NULL, "", interface, request->ifr_name)) return *request->ifr_name ? "it is not known which interface is meant" : NULL;
    bool six = has_ipv6(request->ifr_name);
    const char *problem = strip(s, request, mac);
    if (!problem && !set_flags(s, request, false)) problem = "the interface could not be taken down";
    if (six) put_switch(request->ifr_name, "disable_ipv6", "0");
    return problem;
}

static char *changed(const struct network *n, const char *interface, const char *former_mac) {
    struct ifreq request = {0};
    int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    const char *problem = s < 0 ? "there is no IPv4 in this kernel" : n ? renew(s, &request, n, former_mac) : drop(s, &request, interface, former_mac);
    char *sentence = problem ? format_text("%s: %s (%s)", *request.ifr_name ? request.ifr_name : former_mac ? former_mac : interface, problem, strerror(errno)) : NULL;
    if (s >= 0) close(s);
    return sentence;
}

char *network_renew(const struct network *n, const char *former_mac) { return changed(n, n->interface, former_mac); }

char *network_drop(const char *interface, const char *former_mac) { return changed(NULL, interface, former_mac); }

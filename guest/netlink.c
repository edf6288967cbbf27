#define _GNU_SOURCE
#include "netlink.h"

#include <errno.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bytes.h"

#define ANSWER_ROOM 32768 /* netlink(7): a dump's pieces are at most this large */

static bool ask(int s, struct nlmsghdr *message) { return send(s, message, message->nlmsg_len, 0) == (ssize_t)message->nlmsg_len; }

/* The interface that a message is about; 0 when it names none. */
static unsigned index_of(const struct nlmsghdr *message) {
    const void *body = NLMSG_DATA(message);
    switch (message->nlmsg_type) {
    case RTM_NEWADDR: return ((const struct ifaddrmsg *)body)->ifa_index;
    case RTM_NEWNEIGH: return (unsigned)((const struct ndmsg *)body)->ndm_ifindex;
    default: break;
    }
    const struct rtmsg *route = body;
    int left = (int)RTM_PAYLOAD(message);
    if (route->rtm_flags & RTM_F_CLONED) return 0;
    for (const struct rtattr *part = RTM_RTA(route); RTA_OK(part, left); part = RTA_NEXT(part, left))
        if (part->rta_type == RTA_OIF) return *(const unsigned *)RTA_DATA(part);
    return 0;
}

/* All that the kernel lists, one message after another. 0 or an errno. */
static int list(int s, uint16_t type, struct bytes *all) {
    struct {
        struct nlmsghdr header;
        struct rtmsg body; /* the largest of the three; each begins with the family */
    } request = {.header = {.nlmsg_len = sizeof request, .nlmsg_type = type, .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP}, .body = {.rtm_family = AF_INET}};
    if (!ask(s, &request.header)) return errno;
    for (;;) {
        uint8_t *data = bytes_reserve(all, ANSWER_ROOM);
        ssize_t got = recv(s, data, ANSWER_ROOM, 0);
        if (got <= 0) return got ? errno : EIO;
        unsigned left = (unsigned)got;
        for (struct nlmsghdr *m = (struct nlmsghdr *)data; NLMSG_OK(m, left); m = NLMSG_NEXT(m, left)) {
            if (m->nlmsg_type == NLMSG_DONE) return 0;
            if (m->nlmsg_type == NLMSG_ERROR) return -((struct nlmsgerr *)NLMSG_DATA(m))->error;
            all->end += NLMSG_ALIGN(m->nlmsg_len);
        }
    }
}

/* What the kernel said of a thing is what names it when it is to go. */
static int delete(int s, struct nlmsghdr *message) {
    uint8_t data[8192];
    message->nlmsg_type = (uint16_t)(message->nlmsg_type + 1); /* RTM_NEWx, RTM_DELx */
    message->nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
    if (!ask(s, message)) return errno;
    ssize_t got = recv(s, data, sizeof data, 0);
    const struct nlmsghdr *answer = (const struct nlmsghdr *)data;
    if (got < (ssize_t)NLMSG_LENGTH(sizeof(struct nlmsgerr)) || answer->nlmsg_type != NLMSG_ERROR) return got < 0 ? errno : EIO;
    return -((const struct nlmsgerr *)NLMSG_DATA(answer))->error;
}

/* One thing may take others along: those are gone already. */
static int flush(int s, uint16_t type, unsigned index) {
    struct bytes all = {0};
    int problem = list(s, type, &all);
    unsigned left = (unsigned)bytes_held(&all);
    for (struct nlmsghdr *m = (struct nlmsghdr *)all.data; !problem && NLMSG_OK(m, left); m = NLMSG_NEXT(m, left)) {
        if (index_of(m) != index) continue;
        problem = delete(s, m);
        if (problem == ENOENT || problem == ESRCH || problem == EADDRNOTAVAIL) problem = 0;
    }
    bytes_free(&all);
    return problem;
}

int netlink_flush(unsigned index) {
    int s = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    if (s < 0) return errno;
    int problem = flush(s, RTM_GETADDR, index);
    if (!problem) problem = flush(s, RTM_GETROUTE, index);
    if (!problem) flush(s, RTM_GETNEIGH, index); /* what is no entry but a rule of the kernel's own stays */
    close(s);
    return problem;
}

/* What the old ioctls cannot take away. */
#pragma once

/* Delete every IPv4 address of this interface, then the IPv4 routes and neighbours that are left on it. 0 or an errno. */
int netlink_flush(unsigned index);

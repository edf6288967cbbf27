/* The numbers by which a machine and its boot are told from others. */
#pragma once

/* Each NULL, or a sentence. What the machine does not have is not made. */
char *machine_id_renew(void); /* machine-id(5), and D-Bus's own copy of it */
char *boot_id_renew(void);    /* another file is mounted over the kernel's, which cannot be written */

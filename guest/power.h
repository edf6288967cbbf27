/* How a system with an init of its own is asked to end. */
#pragma once
#include "bytes.h"

/* The program of the given attempt (0, 1, …) as arguments to run, NULL when there are no more. */
char **power_command(unsigned attempt, bool reboot);
/* Tell the init by a signal. Returns false when it is one whose signals we do not know. */
bool power_signal(bool reboot);

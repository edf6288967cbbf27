/* What is in use: processor time, memory, processes, disk, network. */
#pragma once
#include "bytes.h"

void usage_fields(struct bytes *fields);

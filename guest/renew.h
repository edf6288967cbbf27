/* A held machine becomes another one. */
#pragma once
#include "identity.h"

/* NULL, or a sentence: then some of it is done, and the machine must not be let go before it was asked again with success. */
char *renew(const struct identity *identity, bool own_system);

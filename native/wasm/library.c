#include "library.h"
#include "lamella-wasm.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

#define DEFINE(result, name, arguments) result(*name) arguments;
LIBRARY(DEFINE)
#undef DEFINE

struct engine engines[2];

/* What a module's calls may take of the stack of its thread, whose size is the process's own limit. */
enum { WASM_STACK = 1 << 20 };

static void *find(void *library, const char *name) {
    void *found = dlsym(library, name);
    if (!found) {
        fprintf(stderr, "%s is not in the wasmtime library: it is another release than the one that was asked for\n", name);
        exit(1);
    }
    return found;
}

static void must(void *error) {
    if (!error) return;
    wasm_byte_vec text;
    wasmtime_error_message(error, &text);
    fprintf(stderr, "wasmtime: %.*s\n", (int)text.size, text.data);
    exit(1);
}

/* The library's own proc_exit refuses codes from 126 on; every code that a process can end with passes through ours. */
static void define_exit(void *linker) {
    static const char module[] = "wasi_snapshot_preview1", name[] = "proc_exit";
    void *number = wasm_valtype_new(TYPE_I32);
    wasm_type_vec parameters, results;
    wasm_valtype_vec_new(&parameters, 1, &number);
    wasm_valtype_vec_new_empty(&results);
    void *type = wasm_functype_new(&parameters, &results);
    wasmtime_linker_allow_shadowing(linker, true);
    must(wasmtime_linker_define_func(linker, module, sizeof module - 1, name, sizeof name - 1, type, proc_exit, NULL, NULL));
    wasmtime_linker_allow_shadowing(linker, false);
}

void load_library(const char *path) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        fprintf(stderr, "%s\n", dlerror());
        exit(1);
    }
#define FIND(result, name, arguments) *(void **)&name = find(library, #name);
    LIBRARY(FIND)
#undef FIND
    for (int fuel = 0; fuel < 2; fuel++) {
        /* Whatever is set here is part of the cache's key: CONFIGURATION in modules.py. */
        void *config = wasm_config_new();
        wasmtime_config_epoch_interruption_set(config, true);
        wasmtime_config_consume_fuel_set(config, fuel);
        wasmtime_config_wasm_component_model_set(config, true);
        wasmtime_config_wasm_threads_set(config, false);
        wasmtime_config_max_wasm_stack_set(config, WASM_STACK);
        struct engine *one = &engines[fuel];
        one->engine = wasm_engine_new_with_config(config);
        if (!one->engine) { fprintf(stderr, "wasmtime made no engine\n"); exit(1); }
        one->linker = wasmtime_linker_new(one->engine);
        must(wasmtime_linker_define_wasi(one->linker));
        define_exit(one->linker);
        one->component_linker = wasmtime_component_linker_new(one->engine);
        must(wasmtime_component_linker_add_wasip2(one->component_linker));
    }
}

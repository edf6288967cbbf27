/*
 * What is used of wasmtime's C API, found by name in the library that the wasmtime wheel brings.
 * Source of the prototypes: wasm.h, wasi.h and wasmtime.h of the release that pyproject.toml pins.
 */
#ifndef LAMELLA_LIBRARY_H
#define LAMELLA_LIBRARY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct { size_t size; char *data; } wasm_byte_vec;
typedef struct { uint64_t store; void *private; } wasm_func;
typedef struct { uint64_t store; size_t private; } wasm_instance;
typedef struct { uint64_t store; uint32_t private; } component_instance;
typedef struct { _Alignas(8) char bytes[24]; } component_func;
typedef struct { uint8_t kind; _Alignas(8) union { bool is_ok; char bytes[56]; } of; } component_val;
typedef struct { uint8_t kind; _Alignas(8) union { wasm_func func; char bytes[40]; } of; } wasm_extern;

typedef struct { size_t size; void **data; } wasm_type_vec;
typedef struct { uint8_t kind; _Alignas(8) union { int32_t i32; char bytes[24]; } of; } wasm_val;
typedef void *host_function(void *data, void *caller, const wasm_val *arguments, size_t count, wasm_val *results, size_t result_count);

enum { EXTERN_FUNC = 0, TYPE_I32 = 0 };

#define LIBRARY(X) \
    X(void *, wasm_config_new, (void)) \
    X(void *, wasm_engine_new_with_config, (void *)) \
    X(void, wasmtime_config_consume_fuel_set, (void *, bool)) \
    X(void, wasmtime_config_epoch_interruption_set, (void *, bool)) \
    X(void, wasmtime_config_wasm_component_model_set, (void *, bool)) \
    X(void, wasmtime_config_wasm_threads_set, (void *, bool)) \
    X(void, wasmtime_config_max_wasm_stack_set, (void *, size_t)) \
    X(void, wasmtime_config_memory_reservation_set, (void *, uint64_t)) \
    X(void, wasmtime_engine_increment_epoch, (void *)) \
    X(void *, wasmtime_linker_new, (void *)) \
    X(void *, wasmtime_linker_define_wasi, (void *)) \
    X(void, wasmtime_linker_allow_shadowing, (void *, bool)) \
    X(void *, wasmtime_linker_define_func, (void *, const char *, size_t, const char *, size_t, void *, host_function *, void *, void *)) \
    X(void *, wasm_valtype_new, (uint8_t)) \
    X(void, wasm_valtype_vec_new, (wasm_type_vec *, size_t, void **)) \
    X(void, wasm_valtype_vec_new_empty, (wasm_type_vec *)) \
    X(void *, wasm_functype_new, (wasm_type_vec *, wasm_type_vec *)) \
    X(void *, wasmtime_linker_instantiate_pre, (void *, void *, void **)) \
    X(void *, wasmtime_instance_pre_instantiate, (void *, void *, wasm_instance *, void **)) \
    X(bool, wasmtime_instance_export_get, (void *, wasm_instance *, const char *, size_t, wasm_extern *)) \
    X(void *, wasmtime_func_call, (void *, wasm_func *, void *, size_t, void *, size_t, void **)) \
    X(void *, wasmtime_module_new, (void *, const void *, size_t, void **)) \
    X(void *, wasmtime_module_serialize, (void *, wasm_byte_vec *)) \
    X(void *, wasmtime_module_deserialize_file, (void *, const char *, void **)) \
    X(void *, wasmtime_component_new, (void *, const void *, size_t, void **)) \
    X(void *, wasmtime_component_serialize, (void *, wasm_byte_vec *)) \
    X(void *, wasmtime_component_deserialize_file, (void *, const char *, void **)) \
    X(void *, wasmtime_component_linker_new, (void *)) \
    X(void *, wasmtime_component_linker_add_wasip2, (void *)) \
    X(void *, wasmtime_component_linker_instantiate, (void *, void *, void *, component_instance *)) \
    X(void *, wasmtime_component_instance_get_export_index, (component_instance *, void *, void *, const char *, size_t)) \
    X(bool, wasmtime_component_instance_get_func, (component_instance *, void *, void *, component_func *)) \
    X(void *, wasmtime_component_func_call, (component_func *, void *, component_val *, size_t, component_val *, size_t)) \
    X(void *, wasmtime_store_new, (void *, void *, void (*)(void *))) \
    X(void *, wasmtime_store_context, (void *)) \
    X(void, wasmtime_store_limiter, (void *, int64_t, int64_t, int64_t, int64_t, int64_t)) \
    X(void *, wasmtime_context_set_wasi, (void *, void *)) \
    X(void *, wasmtime_context_set_fuel, (void *, uint64_t)) \
    X(void, wasmtime_context_set_epoch_deadline, (void *, uint64_t)) \
    X(void *, wasi_config_new, (void)) \
    X(bool, wasi_config_set_argv, (void *, size_t, const char **)) \
    X(bool, wasi_config_set_env, (void *, size_t, const char **, const char **)) \
    X(void, wasi_config_inherit_stdin, (void *)) \
    X(void, wasi_config_inherit_stdout, (void *)) \
    X(void, wasi_config_inherit_stderr, (void *)) \
    X(bool, wasi_config_preopen_dir, (void *, const char *, const char *, bool)) \
    X(bool, wasmtime_error_exit_status, (void *, int *)) \
    X(void, wasmtime_error_message, (void *, wasm_byte_vec *)) \
    X(bool, wasmtime_trap_code, (void *, uint8_t *)) \
    X(void, wasm_trap_message, (void *, wasm_byte_vec *))

#define DECLARE(result, name, arguments) extern result(*name) arguments;
LIBRARY(DECLARE)
#undef DECLARE

/* Engines by whether they count fuel, with what WASI gives to modules and to components. */
struct engine { void *engine, *linker, *component_linker; };
extern struct engine engines[2];

/* worker.c: ends the process with what the module says. */
host_function proc_exit;

/* Loads the library at `path` and makes the engines; ends the process with a word on standard error when it cannot. */
void load_library(const char *path);

#endif

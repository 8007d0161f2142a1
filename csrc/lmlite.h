/* lmlite's C ABI: an engine is a peer on a socket. The frames are in frames.h, their payloads in protocol.md. */
#ifndef LMLITE_H
#define LMLITE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define LM_ABI_VERSION 1

#if defined(_WIN32)
#define LM_API __declspec(dllexport)
#else
#define LM_API __attribute__((visibility("default")))
#endif

/* Returned by lm_engine_serve. */
enum lm_status {
    LM_OK = 0,            /* the peer closed the socket */
    LM_ERR_PROTOCOL = -1, /* a frame that no peer of this version would send; the socket was closed */
    LM_ERR_IO = -2,       /* the socket failed */
    LM_ERR_RESOURCES = -3 /* threads or memory for the engine itself could not be had */
};

/* The version of this ABI and of the frames; a caller compiled against another one must not go on. */
LM_API int32_t lm_abi_version(void);

/* What was built, as a static JSON object: {"llama_cpp": "<commit>", "version": "...", "backend": "cpu"}. Never freed. */
LM_API const char * lm_build_info(void);

/* Serves one engine on `fd` until the peer closes it; returns LM_OK then, or a negative lm_status. Blocks. Owns fd
 * from the call on and closes it. One call per fd; any number at once in a process. */
LM_API int32_t lm_engine_serve(int32_t fd);

#ifdef __cplusplus
}
#endif
#endif

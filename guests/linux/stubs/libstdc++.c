// In place of libstdc++.so.6, which libjemalloc names for its operator new and delete alone; the only program here that loads
// libjemalloc is redis-server, which is C. The real one has 5000 relocations and 2 MB to read. None of these is ever called.
#define NEVER(name) \
    void name(void) { __builtin_trap(); }
NEVER(_ZSt17__throw_bad_allocv)
NEVER(_ZSt20__throw_system_errori)
NEVER(_ZSt15set_new_handlerPFvvE)
NEVER(__cxa_begin_catch)
NEVER(__cxa_end_catch)
NEVER(__gxx_personality_v0)
void *_ZTISt9bad_alloc[2];

// The least that a test program needs: named tests, checks that say what failed, one process per named test.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

struct test_case {
    const char * name;
    void (*body)();
};

inline std::vector<test_case> & all_tests() {
    static std::vector<test_case> tests;
    return tests;
}

struct test_registration {
    test_registration(const char * name, void (*body)()) { all_tests().push_back({name, body}); }
};

#define TEST(name)                                              \
    static void name();                                         \
    static const test_registration registration_##name(#name, name); \
    static void name()

// Not a test: what a test in Python runs on files that it made, whose folder is the program's second argument.
#define PROGRAM(name) TEST(name)

#define CHECK(condition)                                                              \
    do {                                                                              \
        if (!(condition)) {                                                           \
            fprintf(stderr, "%s:%d: CHECK(%s) failed\n", __FILE__, __LINE__, #condition); \
            exit(1);                                                                  \
        }                                                                             \
    } while (0)

// The path of a GGUF file with a vocabulary, given to the program.
extern std::string model_path;

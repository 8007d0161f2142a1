// `lmlite-tests` lists the tests; `lmlite-tests NAME MODEL.gguf` runs one and exits 0 if it passed. `lmlite-tests walks`: see
// schema_walks.h.
#include "check.h"
#include "schema_walks.h"

#include <cstring>

std::string model_path;

int main(int argc, char ** argv) {
    if (argc < 2) {
        for (const test_case & test : all_tests()) {
            puts(test.name);
        }
        return 0;
    }
    if (strcmp(argv[1], "walks") == 0) {
        schema_walks().answer(std::cin, std::cout);
        return 0;
    }
    model_path = argc > 2 ? argv[2] : "";
    for (const test_case & test : all_tests()) {
        if (strcmp(test.name, argv[1]) == 0) {
            test.body();
            return 0;
        }
    }
    fprintf(stderr, "no test is called %s\n", argv[1]);
    return 2;
}

# A portable build has ggml's kernels and our vector files several times, each for a set of instructions; kernels.cpp takes
# the best that the CPU has when the library is loaded. All else is compiled once, for any CPU of the architecture.
#
# LMLITE_KERNELS: the sets, from the least to the best. The first has to run everywhere; kernels.cpp knows what each needs.

set(X86_AVX2 -msse4.2 -mavx -mavx2 -mf16c -mfma -mbmi2)
set(X86_AVX512 ${X86_AVX2} -mavx512f -mavx512cd -mavx512vl -mavx512dq -mavx512bw -mavx512vbmi -mavx512vnni)
set(KERNELS_sse42 -msse4.2)
set(KERNELS_haswell ${X86_AVX2})
set(KERNELS_alderlake ${X86_AVX2} -mavxvnni)
set(KERNELS_icelake ${X86_AVX512})
set(KERNELS_zen4 ${X86_AVX512} -mavx512bf16)
set(KERNELS_sapphirerapids ${X86_AVX512} -mavx512bf16 -mamx-tile -mamx-int8)
set(KERNELS_armv8 -march=armv8-a)
set(KERNELS_dotprod -march=armv8.2-a+dotprod+fp16)
set(KERNELS_i8mm -march=armv8.2-a+dotprod+fp16+i8mm)
if(LMLITE_ZIG)
    set(KERNELS_armv8 -mcpu=generic)
    set(KERNELS_dotprod -mcpu=generic+v8_2a+dotprod+fullfp16)
    set(KERNELS_i8mm -mcpu=generic+v8_2a+dotprod+fullfp16+i8mm)
endif()

set(known "")
if(LMLITE_PORTABLE AND NOT APPLE AND CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
    set(known sse42 haswell alderlake icelake zen4 sapphirerapids)
elseif(LMLITE_PORTABLE AND NOT APPLE AND CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
    set(known armv8 dotprod i8mm)
endif()
set(LMLITE_KERNEL_SETS "${known}" CACHE STRING "which of the sets to build")
include(CheckCXXCompilerFlag)
set(LMLITE_KERNELS "")
foreach(name IN LISTS known)
    if(name IN_LIST LMLITE_KERNEL_SETS)
        list(JOIN KERNELS_${name} " " options)
        check_cxx_compiler_flag("${options}" LMLITE_CAN_COMPILE_${name}) # GCC 8 does not know what CPUs learned later
        if(LMLITE_CAN_COMPILE_${name})
            list(APPEND LMLITE_KERNELS ${name})
        endif()
    endif()
endforeach()
if(NOT LMLITE_KERNELS)
    return()
endif()

find_package(Python3 REQUIRED COMPONENTS Interpreter)
set(KERNELS_SCRIPT "${CMAKE_CURRENT_SOURCE_DIR}/kernels.py")
set(KERNELS_FOLDER "${CMAKE_CURRENT_BINARY_DIR}/kernels")

get_target_property(ggml_sources ggml-cpu SOURCES)
list(FILTER ggml_sources INCLUDE REGEX "\\.(c|cpp)$")
set(kernel_sources "${CMAKE_CURRENT_SOURCE_DIR}/attention.cpp" "${CMAKE_CURRENT_SOURCE_DIR}/logits.cpp")
foreach(source IN LISTS ggml_sources)
    cmake_path(ABSOLUTE_PATH source BASE_DIRECTORY "${GGML_CPU_SOURCES}")
    list(APPEND kernel_sources "${source}")
    get_source_file_property(options "${source}" TARGET_DIRECTORY ggml-cpu COMPILE_OPTIONS)
    if(options)
        set_source_files_properties("${source}" PROPERTIES COMPILE_OPTIONS "${options}")
    endif()
endforeach()
list(LENGTH kernel_sources n_objects)
math(EXPR last_object "${n_objects} - 1")

set(renamed_objects "")
foreach(name IN LISTS LMLITE_KERNELS)
    add_library(lmlite_kernels_${name} OBJECT EXCLUDE_FROM_ALL ${kernel_sources})
    target_include_directories(lmlite_kernels_${name} SYSTEM PRIVATE
        "$<TARGET_PROPERTY:ggml-cpu,INCLUDE_DIRECTORIES>" "${LMLITE_LLAMA_CPP}/ggml/include" "${LMLITE_LLAMA_CPP}/include")
    target_compile_definitions(lmlite_kernels_${name} PRIVATE "$<TARGET_PROPERTY:ggml-cpu,COMPILE_DEFINITIONS>")
    target_compile_options(lmlite_kernels_${name} PRIVATE
        "$<TARGET_PROPERTY:ggml-cpu,COMPILE_OPTIONS>" ${KERNELS_${name}} -fno-lto -w)
    target_compile_features(lmlite_kernels_${name} PRIVATE c_std_11 cxx_std_17)
    set(renamed "")
    foreach(i RANGE ${last_object})
        list(APPEND renamed "${KERNELS_FOLDER}/${name}-${i}.o")
    endforeach()
    add_custom_command(
        OUTPUT ${renamed}
        COMMAND Python3::Interpreter "${KERNELS_SCRIPT}" rename ${name} "${KERNELS_FOLDER}" $<TARGET_OBJECTS:lmlite_kernels_${name}>
        DEPENDS "${KERNELS_SCRIPT}" lmlite_kernels_${name} $<TARGET_OBJECTS:lmlite_kernels_${name}>
        COMMAND_EXPAND_LISTS VERBATIM)
    list(APPEND renamed_objects ${renamed})
endforeach()
list(JOIN LMLITE_KERNELS "," names)
add_custom_command(
    OUTPUT "${KERNELS_FOLDER}/choose.c"
    COMMAND Python3::Interpreter "${KERNELS_SCRIPT}" choose "${KERNELS_FOLDER}/choose.c" ${names} "${KERNELS_FOLDER}"
    DEPENDS "${KERNELS_SCRIPT}" ${renamed_objects}
    VERBATIM)
add_custom_target(lmlite_kernels DEPENDS ${renamed_objects} "${KERNELS_FOLDER}/choose.c")

# What links ggml's CPU backend gets all of them.
set_source_files_properties(${renamed_objects} TARGET_DIRECTORY ggml-cpu PROPERTIES EXTERNAL_OBJECT TRUE GENERATED TRUE)
set_source_files_properties("${KERNELS_FOLDER}/choose.c" TARGET_DIRECTORY ggml-cpu PROPERTIES GENERATED TRUE)
set_target_properties(ggml-cpu PROPERTIES SOURCES "${renamed_objects};${KERNELS_FOLDER}/choose.c")
add_dependencies(ggml-cpu lmlite_kernels)
list(JOIN LMLITE_KERNELS "\",\"" names)
set_source_files_properties(kernels.cpp PROPERTIES COMPILE_DEFINITIONS "LMLITE_KERNELS=\"${names}\"")

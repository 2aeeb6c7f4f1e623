check version sh -c 'gcc --version | head -1; g++ --version | head -1'
cat > hello.c <<'END'
#include <stdio.h>
#include <stdlib.h>
int main(void) { char *p = malloc(10); p[0] = 'x'; printf("hello %c\n", p[0]); free(p); return 0; }
END
cat > wrong.c <<'END'
#include <stdlib.h>
int main(int argc, char **argv) { char *p = malloc(10); p[argc * 10] = 1; int r = p[1] > 100; free(p); return r; }
END
cat > leak.c <<'END'
#include <stdlib.h>
void *volatile kept;
int main(void) { kept = malloc(77); kept = 0; return 0; }
END
cat > race.c <<'END'
#include <pthread.h>
#include <stdio.h>
static int shared;
static void *add(void *_) { for (int i = 0; i < 1000; i++) shared++; return _; }
int main(void) {
    pthread_t one, two;
    pthread_create(&one, 0, add, 0); pthread_create(&two, 0, add, 0);
    pthread_join(one, 0); pthread_join(two, 0);
    printf("joined\n"); return 0;
}
END
cat > undefined.c <<'END'
#include <limits.h>
#include <stdio.h>
int main(int argc, char **argv) { int big = INT_MAX - 1 + argc; printf("%d\n", big + argc); return 0; }
END
cat > thread.cc <<'END'
#include <atomic>
#include <iostream>
#include <thread>
#include <vector>
#include <filesystem>
#include <stdexcept>
int main() {
    std::atomic<int> sum{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < 50; i++) threads.emplace_back([&] { sum++; });
    for (auto &thread : threads) thread.join();
    try { throw std::runtime_error("thrown"); } catch (std::exception &e) { std::cout << e.what() << ' ' << sum << '\n'; }
    std::filesystem::create_directories("a/b"); std::cout << std::filesystem::remove_all("a") << '\n';
}
END
# Without addresses, numbers of processes and sizes of maps.
told() { "$@" 2>&1 | sed 's/0x[0-9a-f]*/ADDRESS/g; s/^==*[0-9]*==*/==N==/; s/pid=[0-9]*/pid=N/; s/(BuildId: [0-9a-f]*)//; s/tid=[0-9]*/tid=N/' | grep -E "^(==N==|SUMMARY|WARNING|joined|hello|.*runtime error)" | sed 's/ADDRESS.*//'; }
check 'C' sh -c 'gcc -O2 -Wall -o hello hello.c && ./hello'
check 'C++' sh -c 'g++ -std=c++20 -o thread thread.cc -pthread && ./thread'
check static sh -c 'gcc -static -o static hello.c && ./static'
check 'link-time optimisation' sh -c 'gcc -flto -O2 -o lto hello.c && ./lto'
check 'a shared library' sh -c 'echo "int f(void) { return 42; }" > f.c && gcc -shared -fPIC -o libf.so f.c && echo "int f(void); int main(void) { return f(); }" > m.c && gcc -o m m.c -L. -lf && LD_LIBRARY_PATH=. ./m'
for kind in address leak thread undefined; do
    check "correct, -fsanitize=$kind" sh -c "gcc -g -fsanitize=$kind -o $kind hello.c && ./$kind"
done
asan() { gcc -g -fsanitize=address -o wrong wrong.c && told ./wrong; ./wrong > /dev/null 2>&1; }
check 'AddressSanitizer finds an overflow' asan
lsan() { gcc -g -fsanitize=address -o leak leak.c && told ./leak; ./leak > /dev/null 2>&1; }
check 'LeakSanitizer finds a leak' lsan
lsan_alone() { gcc -g -fsanitize=leak -o leak leak.c && told ./leak; ./leak > /dev/null 2>&1; }
check 'LeakSanitizer alone finds it, too' lsan_alone
tsan() { gcc -g -fsanitize=thread -o race race.c && told ./race; ./race > /dev/null 2>&1; }
check 'ThreadSanitizer finds a race' tsan
ubsan() { gcc -g -fsanitize=undefined -o undefined undefined.c && told ./undefined; ./undefined > /dev/null 2>&1; }
check 'UndefinedBehaviorSanitizer finds it' ubsan
check 'a profile' sh -c 'gcc --coverage -o cov hello.c && ./cov && gcov -n cov-hello.gcda | grep Lines'

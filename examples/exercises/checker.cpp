// The checkers of all exercises. Linked with one attempt:  PROGRAM 3  checks it as exercise 3.
//
// An attempt defines one function, so the functions of the other exercises are missing: they are
// declared weak, and null. What is expected comes from widenet.hpp. Typical mistakes are included
// here, each in a namespace of its own: an attempt that gives what a mistake gives gets its hint.
#include "exercise.hpp"

#include "01_layer_norm_backward/check.hpp"
#include "02_softmax_backward/check.hpp"
#include "03_noisy_top_k/check.hpp"
#include "04_capacity/check.hpp"
#include "05_slots_and_drops/check.hpp"
#include "06_dispatch/check.hpp"
#include "07_combine/check.hpp"
#include "08_balance_loss/check.hpp"
#include "09_balance_loss_backward/check.hpp"
#include "10_shared_weights/check.hpp"
#include "11_ties/check.hpp"
#include "12_layer_norm_divergence/check.hpp"

#include <unistd.h>  // _exit, alarm, write

#include <csignal>
#include <cstdlib>
#include <cstring>
#include <exception>

namespace {

struct Exercise {
  const char* title;
  bool (*check)();
};

const Exercise exercises[] = {
    {"LayerNorm backward", exercise_1::check},
    {"softmax backward", exercise_2::check},
    {"noisy top K", exercise_3::check},
    {"capacity in integers", exercise_4::check},
    {"slots and drops", exercise_5::check},
    {"dispatch", exercise_6::check},
    {"combine", exercise_7::check},
    {"balance loss", exercise_8::check},
    {"balance loss backward", exercise_9::check},
    {"gradients of shared weights", exercise_10::check},
    {"ties", exercise_11::check},
    {"divergence of the LayerNorms", exercise_12::check},
};

/// What stops an attempt that does not come back, in words. Only what a signal handler may call.
extern "C" void explain(int signal) {
  const char* text = "stopped: memory is read or written that belongs to nobody\n";
  if (signal == SIGABRT) text = "stopped: an index lies outside of a vector (see the line above)\n";
  if (signal == SIGFPE) text = "stopped: an integer is divided by zero\n";
  if (signal == SIGALRM) text = "stopped: no answer after 5 s; a loop that does not end?\n";
  const auto written = write(STDOUT_FILENO, text, std::strlen(text));
  _exit(written > 0 ? 1 : 2);
}

}  // namespace

int main(int argc, char** argv) {
  const int count = static_cast<int>(sizeof exercises / sizeof exercises[0]);
  const int number = argc == 2 ? std::atoi(argv[1]) : 0;
  if (number < 1 || number > count) {
    std::fprintf(stderr, "usage: %s NUMBER, from 1 to %d\n", argv[0], count);
    return 2;
  }
  for (const int signal : {SIGABRT, SIGFPE, SIGSEGV, SIGALRM}) std::signal(signal, explain);
  alarm(5);
  const Exercise& asked = exercises[number - 1];
  std::printf("exercise %d, %s: ", number, asked.title);
  std::fflush(stdout);
  try {
    return asked.check() ? 0 : 1;
  } catch (const std::exception& error) {
    std::printf("stopped: it throws \"%s\"\n", error.what());
    return 1;
  }
}

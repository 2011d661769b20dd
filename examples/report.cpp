// Makes one self-contained page of what a training run left in its folder, at any time.
#include "support/run.hpp"
#include "support/run_report.hpp"

#include <cstdio>
#include <exception>
#include <string>
#include <vector>

namespace support = widenet::support;

namespace {

const char* const usage =
    R"(report RUN [PAGE]    writes PAGE, RUN/report.html unless given

RUN is the folder of a run of demo, train_vision or train_language, such as build/demo. The page
needs no network and no scripts. It is made of
  metrics.jsonl       curves of training
  routes.jsonl        where the tokens of a few inputs go, over training
  result.json         what the finished model did with its test data
  model.safetensors   settings and LayerNorms
A file that is missing is named where its figures would be.
)";

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> words(argv + 1, argv + argc);
  if (words.empty() || words[0] == "--help" || words.size() > 2) {
    std::fputs(usage, words.size() > 2 ? stderr : stdout);
    return words.size() > 2 ? 2 : 0;
  }
  try {
    const support::RunFiles run{words[0]};
    const std::string page = words.size() == 2 ? words[1] : run.report();
    support::write_report(page, support::report_of_run(run));
    std::printf("Report: %s\n", page.c_str());
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}

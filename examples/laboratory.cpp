// Six experiments with routers, each one command, five seeds and a minute: a table, a figure for
// every measure, and sentences that follow from what was measured.
//
//   laboratory                                        lists the experiments
//   laboratory NAME [--steps N] [--seeds N] [--data FOLDER] [--out FOLDER] [--help]
//
// NAME is a name or number of the list. Writes OUT/NAME.html and prints the same as text. Trains on
// the first 1000 training images of real handwritten digits and measures on the other 437; the test
// images are not read.

#include "support/laboratory.hpp"
#include "support/run.hpp"
#include "widenet.hpp"

#include <filesystem>
#include <fstream>
#include <iostream>
#include <string>
#include <system_error>
#include <vector>

namespace wn = widenet;
namespace support = widenet::support;

namespace {

using support::Trial;

const support::Measure accuracy{&Trial::accuracy, "accuracy",
                                "Share of the images held out that are read right."};
const support::Measure loss{&Trial::loss, "loss", "Cross entropy of the images held out.", 3, 1};
const support::Measure training_loss{&Trial::training_loss, "training loss",
                                     "Cross entropy of the batches of the last tenth of the "
                                     "training.", 3, 1};
const support::Measure busiest{&Trial::busiest, "busiest expert",
                               "Share of the choices that go to the busiest expert."};
const support::Measure evenness{&Trial::evenness, "evenness",
                                "Entropy of the load over ln E: 100 % is perfect balance."};
const support::Measure dropped{&Trial::dropped, "dropped",
                               "Share of the choices that find their expert full."};
const support::Measure router_gradient{&Trial::router_gradient, "router gradient",
                                       "Length of the gradient of the router's weights, the mean "
                                       "over the steps.", 3, 1};
const support::Measure router_change{&Trial::router_change, "router change",
                                     "How far training moved the router's weights, relative to "
                                     "their length."};
const support::Measure divergence{&Trial::divergence, "divergence x 1000",
                                  "A thousand times the mean squared difference of the gammas of "
                                  "two blocks, element by element.", 2, 1000};
const support::Measure parameters{&Trial::parameters, "parameters",
                                  "Numbers that are learned.", 0, 1, true};

/// Three blocks of width 32, four experts of which each token takes two, as in the quick start.
support::Setting setting(const std::string& name) { return {name, wn::VisionConfig::toy()}; }

/// Does a router collapse without a balance loss?
support::Laboratory collapse() {
  support::Laboratory lab;
  lab.name = "collapse";
  lab.title = "A router with and without a balance loss";
  lab.question = "Eight experts, one for each token. Does the router leave some of them idle when "
                 "nothing asks it to share the work (lambda = 0)?";
  lab.expected = "Experts that are chosen learn, and are chosen more: without a balance loss a "
                 "router is expected to collapse to a few of them, so that the share of the "
                 "busiest grows in training. The paper adds the loss with lambda = 0.01, for up to "
                 "32 blocks and 300 epochs; a model as small and as young as this one may need "
                 "more of it.";
  for (const double lambda : {0.0, 0.01, 0.1}) {
    lab.settings.push_back(setting("lambda " + support::fixed(lambda, lambda < 0.05 ? 2 : 1)));
    lab.settings.back().lambda = lambda;
    wn::EncoderConfig& encoder = lab.settings.back().config.encoder;
    encoder.experts = 8, encoder.top_k = 1;
  }
  lab.settings[0].name = "lambda 0";
  lab.measures = {busiest, evenness, dropped, accuracy};
  lab.expectations = {{busiest, 0, 1, -1}, {busiest, 0, 2, -1}, {dropped, 0, 1, -1},
                      {dropped, 0, 2, -1}, {accuracy, 0, 1, 1}, {accuracy, 0, 2, 1}};
  lab.curve = {&Trial::busiest_by_step, "busiest expert",
               "Share of the choices in training that go to the busiest expert of a block.", true,
               1.0 / 8, "perfect balance"};
  lab.steps = 500;
  return lab;
}

/// How many slots does an expert need?
support::Laboratory capacity() {
  support::Laboratory lab;
  lab.name = "capacity";
  lab.title = "Room at the experts";
  lab.question = "Every expert has factor K N / E slots. What does it cost to have fewer of them, "
                 "and what does it bring to have more?";
  lab.expected = "With a factor below 1 some choices must be dropped: at 0.5 half of them. The "
                 "paper takes 1.2. Above the factor with which nothing is dropped more room can "
                 "change nothing.";
  for (const wn::Index percent : {50, 75, 100, 120, 200}) {
    lab.settings.push_back(
        setting("factor " + support::fixed(double(percent) / 100, percent == 75 ? 2 : 1)));
    lab.settings.back().config.encoder.capacity_factor = {percent, 100};
  }
  lab.measures = {dropped, accuracy, loss};
  lab.expectations = {{dropped, 0, 3, -1}, {dropped, 3, 4, 0}, {accuracy, 0, 3, 1},
                      {accuracy, 1, 3, 1}, {accuracy, 3, 4, 0}, {loss, 0, 3, -1}};
  return lab;
}

/// What does the noise on the router's logits do?
support::Laboratory noise() {
  support::Laboratory lab;
  lab.name = "noise";
  lab.title = "Noise on the router's logits";
  lab.question = "In training the router's logits get normal noise of standard deviation 1/E. What "
                 "changes without it?";
  lab.expected = "Noise sends a token now and then to an expert that it would not choose, so the "
                 "load is expected to be more even with it. What it does to the accuracy is open.";
  for (const bool is_on : {false, true}) {
    lab.settings.push_back(setting(is_on ? "noise 1/E" : "no noise"));
    if (!is_on) lab.settings.back().config.encoder.conventions.noise = wn::RouterNoise::none;
  }
  lab.measures = {evenness, busiest, dropped, accuracy};
  lab.expectations = {{evenness, 0, 1, 1}, {busiest, 0, 1, -1}, {dropped, 0, 1, -1},
                      {accuracy, 0, 1, 0}};
  lab.steps = 600;
  return lab;
}

/// Can a router learn whose only gate is always 1?
support::Laboratory gate() {
  support::Laboratory lab;
  lab.name = "gate";
  lab.title = "One expert per token, and a gate that is always 1";
  lab.question = "With K = 1 a gate that is divided by the sum of the gates is 1, whatever the "
                 "router says. Does the router learn from the task (lambda = 0)?";
  lab.expected = "The gradient of p / p is 0: the router gets none from the task and stays what it "
                 "was at random. The gates of the paper are not renormalised, so that its router "
                 "learns with one expert per token, too.";
  for (const bool is_renormalised : {false, true}) {
    lab.settings.push_back(setting(is_renormalised ? "gate = 1" : "raw gate"));
    lab.settings.back().lambda = 0;
    lab.settings.back().config.encoder.top_k = 1;
    if (is_renormalised)
      lab.settings.back().config.encoder.conventions.gate = wn::GateRule::renormalized;
  }
  lab.measures = {router_gradient, router_change, accuracy, busiest};
  lab.expectations = {{router_gradient, 0, 1, -1}, {router_change, 0, 1, -1},
                      {accuracy, 0, 1, -1}, {busiest, 0, 1, 0}};
  lab.curve = {&Trial::gradient_by_step, "router gradient",
               "Length of the gradient of the router's weights.", false};
  lab.steps = 600;
  return lab;
}

/// Do blocks that share everything else need LayerNorms of their own?
support::Laboratory norm() {
  support::Laboratory lab;
  lab.name = "norm";
  lab.title = "LayerNorms shared, and one pair for each block";
  lab.question = "Attention, router and experts are shared by all blocks. What if the LayerNorms "
                 "are, too?";
  lab.expected = "In the paper's ablation on ImageNet individual LayerNorms are better at every "
                 "size of the model: they tell the shared layers in which block they are. They "
                 "differ more from each other than those of a ViT.";
  for (const bool is_shared : {true, false}) {
    lab.settings.push_back(setting(is_shared ? "shared norms" : "own norms"));
    lab.settings.back().config.encoder.share_layer_norm = is_shared;
    lab.settings.back().config.encoder.blocks = 4;
  }
  lab.measures = {accuracy, loss, training_loss, divergence, parameters};
  lab.expectations = {{accuracy, 0, 1, 1}, {loss, 0, 1, -1}, {training_loss, 0, 1, -1},
                      {divergence, 0, 1, 1}};
  lab.steps = 500;
  return lab;
}

/// How many experts?
support::Laboratory experts() {
  support::Laboratory lab;
  lab.name = "experts";
  lab.title = "The number of experts";
  lab.question = "Every token takes two experts, of 2, 4, 8 or 16: the work per token is the same, "
                 "the number of parameters is not.";
  lab.expected = "More experts hold more and fit the training images better. The paper takes 4 for "
                 "ImageNet, where more of them overfit, and up to 16 for text, where more are "
                 "better.";
  for (const wn::Index E : {2, 4, 8, 16}) {
    lab.settings.push_back(setting(std::to_string(E) + " experts"));
    lab.settings.back().config.encoder.experts = E;
  }
  lab.measures = {training_loss, loss, accuracy, dropped, parameters};
  lab.expectations = {{training_loss, 0, 1, -1}, {training_loss, 1, 3, -1}, {accuracy, 0, 1, 1},
                      {accuracy, 1, 3, -1}, {dropped, 1, 3, 0}};
  return lab;
}

std::vector<support::Laboratory> laboratories() {
  return {collapse(), capacity(), noise(), gate(), norm(), experts()};
}

struct Options {
  wn::Index steps = 0, seeds = 5;
  std::string data = "data/digits", out = "build/laboratory";
};

support::CommandLine command_line(Options& options) {
  support::CommandLine line("laboratory", "an experiment with routers on handwritten digits");
  line.add("--steps", options.steps, "steps of training; 0: those of the experiment", 0)
      .add("--seeds", options.seeds, "how often each setting is trained")
      .add("--data", options.data, "folder of the digits")
      .add("--out", options.out, "folder for the page");
  return line;
}

void list() {
  std::cout << "laboratory NAME [--steps N] [--seeds N] [--data FOLDER] [--out FOLDER]\n\n";
  int number = 0;
  for (const support::Laboratory& lab : laboratories())
    std::cout << "  " << ++number << " " << lab.name << std::string(10 - lab.name.size(), ' ')
              << lab.title << "\n"
              << support::wrapped(lab.question, 90, "              ");
}

int run(const support::Laboratory& lab, const Options& options) {
  constexpr wn::Index num_training = 1000;
  const support::LabelledImages all = support::load_images(options.data, "train");
  wn::require<wn::ValueError>(all.count > num_training, "laboratory: the training images must be "
                              "more than ", num_training, "; got ", all.count);
  const support::LabelledImages training = all.slice(0, num_training);
  const support::LabelledImages held_out = all.slice(num_training, all.count - num_training);
  const wn::Index steps = options.steps > 0 ? options.steps : lab.steps;
  const support::Trials trials = support::run_laboratory(
      lab, steps, options.seeds, training, held_out, [] { std::cerr << "." << std::flush; });
  std::cerr << std::endl;
  std::cout << support::laboratory_text(lab, trials);

  const wn::EncoderConfig& encoder = lab.settings[0].config.encoder;
  const std::string path = options.out + "/" + lab.name + ".html";
  std::error_code ignored;  // if there is no folder, the file cannot be written
  std::filesystem::create_directories(options.out, ignored);
  std::ofstream file(path, std::ios::binary);
  file << support::laboratory_html(
              lab, trials,
              {{"training images", std::to_string(training.count)},
               {"images held out", std::to_string(held_out.count)},
               {"seeds", std::to_string(options.seeds)},
               {"steps", std::to_string(steps)},
               {"blocks", std::to_string(encoder.blocks)},
               {"width", std::to_string(encoder.width)}})
       << std::flush;
  wn::require<wn::IoError>(file.good(), "laboratory: ", path,
                           ": must be writable; got: a failed write");
  std::cout << "\n  Page: " << path << std::endl;
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc < 2) {
      list();
      return 0;
    }
    Options options;
    const support::CommandLine line = command_line(options);
    const std::string name = argv[1];
    if (name == "--help" || !line.parse(argc - 1, argv + 1)) {
      std::cout << line.usage();
      return 0;
    }
    std::string names;
    int number = 0;
    for (const support::Laboratory& lab : laboratories()) {
      if (name == lab.name || name == std::to_string(++number)) return run(lab, options);
      names += " " + lab.name;
    }
    wn::fail<wn::ValueError>("laboratory: the name must be one of", names, "; got ", name);
  } catch (const std::exception& error) {
    std::cerr << error.what() << std::endl;
    return 1;
  }
}

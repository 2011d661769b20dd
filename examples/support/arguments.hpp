// arguments.hpp - the arguments of a program of several commands: words, and options in any place.
//
// SPDX-License-Identifier: MIT

#ifndef WIDENET_EXAMPLES_SUPPORT_ARGUMENTS_HPP
#define WIDENET_EXAMPLES_SUPPORT_ARGUMENTS_HPP

#include "widenet.hpp"

#include <string>  // string
#include <vector>  // vector

namespace widenet::support {

/// What `validate` is given: a command and its words, in order, and the options among them.
struct Arguments {
  std::vector<std::string> words;
  bool json = false;  // --json, of compare and explain
  std::string next;   // --next FILE, of explain
};

/// Parts words and options, which begin with --; a file of such a name must be given as ./--NAME.
///
///   Errors    ConfigError if an option is unknown, is not one of this command, or lacks its file
///   Example   arguments_of({"explain", "--json", "run", "--next", "more"}).words
///             // {"explain", "run"}
inline Arguments arguments_of(const std::vector<std::string>& given) {
  Arguments arguments;
  std::vector<std::string> options;
  for (std::size_t i = 0; i < given.size(); ++i) {
    const std::string& word = given[i];
    if (word.rfind("--", 0) != 0 || word == "--help") {
      arguments.words.push_back(word);
      continue;
    }
    options.push_back(word);
    if (word != "--next") continue;
    require<ConfigError>(i + 1 < given.size() && given[i + 1].rfind("--", 0) != 0,
                         "validate: --next must be followed by a file; got ",
                         i + 1 < given.size() ? given[i + 1] : "the end");
    arguments.next = given[++i];
  }
  const std::string command = arguments.words.empty() ? "" : arguments.words[0];
  for (const std::string& option : options) {
    const bool is_json = option == "--json" && (command == "compare" || command == "explain");
    require<ConfigError>(is_json || (option == "--next" && command == "explain"),
                         "validate: an option must be --json, of compare and explain, or --next "
                         "FILE, of explain; got ", option, " of ",
                         command.empty() ? "no command" : command);
    arguments.json = arguments.json || is_json;
  }
  return arguments;
}

}  // namespace widenet::support

#endif  // WIDENET_EXAMPLES_SUPPORT_ARGUMENTS_HPP

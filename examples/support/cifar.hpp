// cifar.hpp - reads the binary files of CIFAR-10 and CIFAR-100.
//
// A file is a row of records without a header: the labels, one byte each (CIFAR-10: the class;
// CIFAR-100: one of 20 superclasses, then the class), and 3072 bytes of pixels, (3, 32, 32).
//
// SPDX-License-Identifier: MIT

#ifndef WIDENET_EXAMPLES_SUPPORT_CIFAR_HPP
#define WIDENET_EXAMPLES_SUPPORT_CIFAR_HPP

#include "widenet.hpp"

#include <cstdint>       // int32_t, uint8_t
#include <filesystem>    // file_size
#include <fstream>       // ifstream
#include <string>        // string
#include <system_error>  // error_code
#include <vector>        // vector

namespace widenet::support {

/// Labelled images as a file holds them.
struct ImageSet {
  Index count = 0, channels = 1, rows = 0, columns = 0, classes = 0;
  std::vector<std::uint8_t> pixels;  // (count, channels, rows, columns)
  std::vector<std::int32_t> labels;  // (count)

  Index image_size() const { return channels * rows * columns; }
};

enum class Cifar { ten, hundred };

/// Reads a file of CIFAR and appends its images to those that are there. The size of the file is
/// checked before anything is allocated.
///
///   Errors    IoError naming the file, the offset and the rule
inline void read_cifar(const std::string& path, Cifar kind, ImageSet& set) {
  const std::uintmax_t num_labels = kind == Cifar::ten ? 1 : 2, record = num_labels + 3072;
  const Index classes = kind == Cifar::ten ? 10 : 100;
  std::error_code error;
  const std::uintmax_t size = std::filesystem::file_size(path, error);
  require<IoError>(!error, "read_cifar: ", path, ": must be a file; got: ", error.message());
  std::ifstream stream(path, std::ios::binary);
  require<IoError>(stream.good(), "read_cifar: ", path, ": must be readable; got: not opened");
  require<IoError>(size > 0 && size % record == 0, "read_cifar: ", path, ": at byte ",
                   size / record * record, ": a record must have ", record, " bytes; got ",
                   size % record, " and the end of the file",
                   size % (6147 - record) == 0 && size > 0
                       ? "; hint: the size is that of CIFAR-" +
                             std::string(kind == Cifar::ten ? "100" : "10")
                       : "");
  require<ShapeError>(set.count == 0 || (set.channels == 3 && set.rows == 32 &&
                                         set.columns == 32 && set.classes == classes),
                      "read_cifar: ", path, ": images (3, 32, 32) of ", classes,
                      " classes must follow such images; got (", set.channels, ", ", set.rows, ", ",
                      set.columns, ") of ", set.classes);
  std::vector<std::uint8_t> bytes(static_cast<std::size_t>(size));
  stream.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(size));
  require<IoError>(stream.good(), "read_cifar: ", path, ": at byte ", stream.gcount(),
                   ": there must be ", size, " bytes; got a failed read");
  for (std::size_t at = 0; at < bytes.size(); at += record)
    for (std::size_t i = 0; i < num_labels; ++i) {
      const Index limit = i + 1 < num_labels ? 20 : classes;
      require<IoError>(bytes[at + i] < limit, "read_cifar: ", path, ": at byte ", at + i,
                       ": a label must be below the ", limit,
                       i + 1 < num_labels ? " superclasses" : " classes", "; got ",
                       int(bytes[at + i]));
    }

  set.channels = 3, set.rows = set.columns = 32, set.classes = classes;
  set.count += static_cast<Index>(size / record);
  for (auto at = bytes.begin(); at != bytes.end(); at += 3072) {
    at += static_cast<std::ptrdiff_t>(num_labels);
    set.labels.push_back(*(at - 1));
    set.pixels.insert(set.pixels.end(), at, at + 3072);
  }
}

}  // namespace widenet::support

#endif  // WIDENET_EXAMPLES_SUPPORT_CIFAR_HPP

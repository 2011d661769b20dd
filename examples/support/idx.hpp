// idx.hpp - reads images and labels in the IDX format of MNIST.
//
// An IDX file is a magic number 0x0000 08 rank (08: unsigned bytes), then the extents as big-endian
// 32-bit numbers, outermost first, then one byte per value. Images have rank 3, labels rank 1.
//
// SPDX-License-Identifier: MIT

#ifndef WIDENET_EXAMPLES_SUPPORT_IDX_HPP
#define WIDENET_EXAMPLES_SUPPORT_IDX_HPP

#include "widenet.hpp"

#include <cstdint>       // uint8_t, uint32_t, uint64_t
#include <cstdio>        // snprintf
#include <filesystem>    // file_size
#include <fstream>       // ifstream
#include <string>        // string
#include <system_error>  // error_code
#include <vector>        // vector

namespace widenet::support {

struct IdxData {
  std::vector<std::uint8_t> images;  // (count, rows, columns), row-major
  Index count = 0, rows = 0, columns = 0;
  std::vector<int> labels;  // (count)
};

/// An open IDX file whose header has been checked against the size of the file.
class IdxFile {
 public:
  IdxFile(const std::string& path, Index rank) : path_(path), header_size_(4 + 4 * rank) {
    std::error_code error;
    const std::uintmax_t file_size = std::filesystem::file_size(path, error);
    require<IoError>(!error, "read_idx: ", path, ": must be a file; got: ", error.message());
    stream_.open(path, std::ios::binary);
    require<IoError>(stream_.good(), "read_idx: ", path, ": must be readable; got: not opened");

    const auto header_size = static_cast<std::uintmax_t>(header_size_);
    const auto magic = file_size < 4 ? 0 : read_word();
    const auto expected = 0x0800u | static_cast<std::uint32_t>(rank);
    require<IoError>(file_size < 4 || magic == expected, at(0), "the magic number must be ",
                     hex(expected), ", unsigned bytes with ", rank, " extents; got ", hex(magic),
                     magic >> 16 == 0x1F8B ? "; hint: the file is compressed, gunzip it" : "");
    require<IoError>(file_size >= header_size, at(file_size), "the header must have ", header_size,
                     " bytes; got the end of the file");

    std::string product;
    for (Index i = 0; i < rank; ++i) {
      extents_.push_back(read_word());
      require<IoError>(extents_.back() > 0, at(4 + 4 * i), "an extent must be at least 1; got 0");
      product += (i ? " x " : "") + std::to_string(extents_.back());
    }
    // An extent has 32 bits, so all but the first have a product of at most 64; the division
    // compares without forming the product of 96.
    const std::uint64_t row = rank == 3 ? std::uint64_t(extents_[1]) * extents_[2] : 1;
    const std::uint64_t size = file_size - header_size;
    require<IoError>(size % row == 0 && size / row == extents_[0], at(4),
                     "the extents must multiply to the ", size, " bytes from byte ", header_size,
                     " to the end of the file; got ", product);
    size_ = static_cast<std::size_t>(size);
  }

  Index extent(std::size_t i) const { return static_cast<Index>(extents_[i]); }

  std::vector<std::uint8_t> read() {
    std::vector<std::uint8_t> values(size_);
    stream_.read(reinterpret_cast<char*>(values.data()), static_cast<std::streamsize>(size_));
    require<IoError>(stream_.good(), at(header_size_ + stream_.gcount()), "there must be ", size_,
                     " values; got a failed read");
    return values;
  }

  /// How errors begin: "read_idx: <path>: at byte <offset>: ".
  template <class Offset> std::string at(Offset offset) const {
    return "read_idx: " + path_ + ": at byte " + std::to_string(offset) + ": ";
  }

 private:
  std::uint32_t read_word() {
    std::uint8_t byte[4] = {};
    stream_.read(reinterpret_cast<char*>(byte), 4);
    return std::uint32_t(byte[0]) << 24 | std::uint32_t(byte[1]) << 16 |
           std::uint32_t(byte[2]) << 8 | std::uint32_t(byte[3]);
  }
  static std::string hex(std::uint32_t word) {
    char text[11];
    std::snprintf(text, sizeof text, "0x%08X", static_cast<unsigned>(word));
    return text;
  }

  std::string path_;
  std::ifstream stream_;
  std::vector<std::uint32_t> extents_;
  Index header_size_;
  std::size_t size_ = 0;
};

/// Reads a file of images and the file of their labels. Both headers are checked, against the sizes
/// of the files and against each other, before anything of such a size is allocated.
///
///   Errors    IoError naming the file, the offset and the rule
inline IdxData read_idx(const std::string& images_path, const std::string& labels_path,
                        Index num_classes) {
  IdxFile images(images_path, 3), labels(labels_path, 1);
  IdxData data;
  data.count = images.extent(0), data.rows = images.extent(1), data.columns = images.extent(2);
  require<IoError>(labels.extent(0) == data.count, labels.at(4), "there must be ", data.count,
                   " labels, one per image; got ", labels.extent(0));
  for (const std::uint8_t label : labels.read()) {
    require<IoError>(label < num_classes, labels.at(8 + data.labels.size()),
                     "a label must be below the ", num_classes, " classes; got ", int(label));
    data.labels.push_back(label);
  }
  data.images = images.read();
  return data;
}

}  // namespace widenet::support

#endif  // WIDENET_EXAMPLES_SUPPORT_IDX_HPP

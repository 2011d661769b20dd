// digits.hpp - labelled images in memory, and the batches that training draws from them.
//
// SPDX-License-Identifier: MIT

#ifndef WIDENET_EXAMPLES_SUPPORT_DIGITS_HPP
#define WIDENET_EXAMPLES_SUPPORT_DIGITS_HPP

#include "support/idx.hpp"
#include "support/images.hpp"
#include "widenet.hpp"

#include <algorithm>  // max_element
#include <cstdint>    // int32_t
#include <string>     // string
#include <vector>     // vector

namespace widenet::support {

/// Grey images with values in [-1, 1], and their labels.
struct LabelledImages {
  Index count = 0, rows = 0, columns = 0;
  std::vector<float> pixels;  // (count, rows, columns)
  std::vector<std::int32_t> labels;

  /// Images first, ..., first + n - 1.
  LabelledImages slice(Index first, Index n) const {
    require<ValueError>(0 <= first && 0 <= n && first <= count - n,
                        "slice: images must lie in [0, ", count, "); got ", first, " to ",
                        first + n - 1);
    const auto from = pixels.begin() + first * rows * columns;
    return {n, rows, columns, {from, from + n * rows * columns},
            {labels.begin() + first, labels.begin() + first + n}};
  }
  /// All of them, as (count, 1, rows, columns).
  Tensor<float> tensor() const { return {{count, 1, rows, columns}, pixels}; }
};

/// Reads `<folder>/<part>-images-idx3-ubyte` and `<folder>/<part>-labels-idx1-ubyte`. The largest
/// pixel of the file becomes 1, and 0 becomes -1.
inline LabelledImages load_images(const std::string& folder, const std::string& part,
                                  Index num_classes = 10) {
  const std::string stem = folder + "/" + part;
  const IdxData data =
      read_idx(stem + "-images-idx3-ubyte", stem + "-labels-idx1-ubyte", num_classes);
  const float half = std::max(1.0f, float(*std::max_element(data.images.begin(),
                                                            data.images.end()))) / 2;
  LabelledImages images{data.count, data.rows, data.columns, {}, {}};
  for (const std::uint8_t value : data.images) images.pixels.push_back(float(value) / half - 1);
  images.labels.assign(data.labels.begin(), data.labels.end());
  return images;
}

struct Batch {
  Tensor<float> images;  // (B, 1, rows, columns)
  std::vector<std::int32_t> labels;
};

/// The batch of a step: a function of the seed and the step, so that training can stop and go on.
/// Every epoch visits the images in a new order; what does not fill a batch is left out. One image
/// in two is moved by -1, 0 or 1 pixels along both axes, and background moves in.
inline Batch batch_of_step(const LabelledImages& data, Index batch_size, const Rng& rng,
                           Index step) {
  const std::vector<Index> order = images_of_step(data.count, batch_size, rng, step);
  const Rng shift = rng.for_purpose(Purpose::augmentation).at_step(step);
  const Index size = data.rows * data.columns;
  std::vector<float> pixels(static_cast<std::size_t>(batch_size * size), -1.0f);
  Batch batch;
  for (Index b = 0; b < batch_size; ++b) {
    const Index image = order[static_cast<std::size_t>(b)];
    const auto draw = [&](Index i) { return static_cast<Index>(3 * shift.uniform(4 * b + i)) - 1; };
    const bool is_moved = shift.uniform(4 * b) < 0.5;
    const Index dy = is_moved ? draw(1) : 0, dx = is_moved ? draw(2) : 0;
    for (Index y = std::max<Index>(0, dy); y < std::min(data.rows, data.rows + dy); ++y)
      for (Index x = std::max<Index>(0, dx); x < std::min(data.columns, data.columns + dx); ++x)
        pixels[static_cast<std::size_t>(b * size + y * data.columns + x)] =
            data.pixels[static_cast<std::size_t>(image * size + (y - dy) * data.columns + x - dx)];
    batch.labels.push_back(data.labels[static_cast<std::size_t>(image)]);
  }
  batch.images = Tensor<float>({batch_size, 1, data.rows, data.columns}, pixels);
  return batch;
}

}  // namespace widenet::support

#endif  // WIDENET_EXAMPLES_SUPPORT_DIGITS_HPP

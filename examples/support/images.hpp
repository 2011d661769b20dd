// images.hpp - folders of labelled images, and the batches that training draws from them.
//
// SPDX-License-Identifier: MIT

#ifndef WIDENET_EXAMPLES_SUPPORT_IMAGES_HPP
#define WIDENET_EXAMPLES_SUPPORT_IMAGES_HPP

#include "support/augment.hpp"
#include "support/cifar.hpp"
#include "support/idx.hpp"
#include "widenet.hpp"

#include <algorithm>   // max_element
#include <cstdint>     // int32_t, uint8_t
#include <filesystem>  // exists
#include <string>      // string
#include <vector>      // vector

namespace widenet::support {

/// Reads the images of one part, "train" or "test", from a folder that holds the files of
///   IDX        <part>-images-idx3-ubyte and <part>-labels-idx1-ubyte; MNIST calls "test" t10k
///   CIFAR-10   data_batch_1.bin to data_batch_5.bin, test_batch.bin
///   CIFAR-100  train.bin, test.bin
/// The pixels of IDX files are stretched so that the largest becomes 255.
///
///   Errors    IoError if there are no such files, or as read_idx and read_cifar
inline ImageSet load_image_set(const std::string& folder, const std::string& part,
                               Index idx_classes = 10) {
  const auto has = [&folder](const std::string& name) {
    return std::filesystem::exists(folder + "/" + name);
  };
  ImageSet set;
  for (const std::string& stem : {part, std::string(part == "test" ? "t10k" : part)}) {
    if (!has(stem + "-images-idx3-ubyte")) continue;
    const IdxData data = read_idx(folder + "/" + stem + "-images-idx3-ubyte",
                                  folder + "/" + stem + "-labels-idx1-ubyte", idx_classes);
    const int largest = std::max<int>(1, *std::max_element(data.images.begin(), data.images.end()));
    set.count = data.count, set.rows = data.rows, set.columns = data.columns;
    set.classes = idx_classes;
    set.labels.assign(data.labels.begin(), data.labels.end());
    for (const int value : data.images)
      set.pixels.push_back(static_cast<std::uint8_t>((value * 255 + largest / 2) / largest));
    return set;
  }
  const std::string ten = part == "test" ? "test_batch.bin" : "data_batch_1.bin";
  if (has(ten)) {
    for (int i = 1; i <= (part == "test" ? 1 : 5); ++i)
      read_cifar(folder + "/" + (part == "test" ? ten : "data_batch_" + std::to_string(i) + ".bin"),
                 Cifar::ten, set);
    return set;
  }
  require<IoError>(has(part + ".bin"), "load_image_set: ", folder, ": there must be ", part,
                   "-images-idx3-ubyte (IDX), ", ten, " (CIFAR-10) or ", part,
                   ".bin (CIFAR-100); got none of them",
                   has("train-images-idx3-ubyte.gz") ? "; hint: gunzip the files there" : "");
  read_cifar(folder + "/" + part + ".bin", Cifar::hundred, set);
  return set;
}

/// The last n images go into a set of their own.
///
///   Errors    ValueError unless 0 < n < count
inline ImageSet split_off(ImageSet& set, Index n) {
  require<ValueError>(0 < n && n < set.count, "split_off: the number of images must lie in [1, ",
                      set.count - 1, "]; got ", n);
  ImageSet rest = set;
  rest.count = n, set.count -= n;
  rest.pixels.erase(rest.pixels.begin(), rest.pixels.end() - n * set.image_size());
  rest.labels.erase(rest.labels.begin(), rest.labels.end() - n);
  set.pixels.resize(static_cast<std::size_t>(set.count * set.image_size()));
  set.labels.resize(static_cast<std::size_t>(set.count));
  return rest;
}

inline Image image_at(const ImageSet& set, Index i) {
  const auto from = set.pixels.begin() + i * set.image_size();
  return {set.channels, set.rows, set.columns, {from, from + set.image_size()}};
}

/// The images of a step: a function of the seed and the step, so that training can stop and go on.
/// Every epoch visits them in a new order; what does not fill a batch is left out.
inline std::vector<Index> images_of_step(Index count, Index batch_size, const Rng& rng,
                                         Index step) {
  require<ValueError>(0 < batch_size && batch_size <= count,
                      "images_of_step: the batch size must lie in [1, ", count, "]; got ",
                      batch_size);
  const Index steps_per_epoch = count / batch_size, epoch = step / steps_per_epoch;
  const std::vector<Index> order =
      permutation(count, rng.for_purpose(Purpose::shuffle).at_step(epoch));
  const auto from = order.begin() + step % steps_per_epoch * batch_size;
  return {from, from + batch_size};
}

struct ImageBatch {
  Tensor<float> images;              // (B, channels, rows, columns)
  Tensor<float> targets;             // (B, classes)
  std::vector<std::int32_t> labels;  // of the images before mixup
};

/// The batch of a step as a recipe asks for it, of images of this size.
inline ImageBatch training_batch(const ImageSet& set, Index batch_size, const Augmentation& how,
                                 double label_smoothing, Index rows, Index columns, const Rng& rng,
                                 Index step) {
  const Rng random = rng.for_purpose(Purpose::augmentation).at_step(step);
  ImageBatch batch;
  std::vector<float> pixels;
  for (const Index i : images_of_step(set.count, batch_size, rng, step)) {
    const Draws draws(random, static_cast<Index>(batch.labels.size()));
    const std::vector<float> image = augmented(image_at(set, i), how, rows, columns, draws);
    pixels.insert(pixels.end(), image.begin(), image.end());
    batch.labels.push_back(set.labels[static_cast<std::size_t>(i)]);
  }
  std::vector<float> targets = targets_of(batch.labels, set.classes, label_smoothing);
  if (how.mixes) mixup(pixels, targets, batch_size, random);
  batch.images = Tensor<float>({batch_size, set.channels, rows, columns}, pixels);
  batch.targets = Tensor<float>({batch_size, set.classes}, targets);
  return batch;
}

/// Images first, ..., first + n - 1 for evaluation: resized, and nothing random.
inline ImageBatch evaluation_batch(const ImageSet& set, Index first, Index n, Index rows,
                                   Index columns) {
  const Augmentation none{{0, 0}, 1, false, false};
  ImageBatch batch;
  std::vector<float> pixels;
  for (Index i = first; i < first + n; ++i) {
    const std::vector<float> image =
        augmented(image_at(set, i), none, rows, columns, Draws(Rng(0), 0));
    pixels.insert(pixels.end(), image.begin(), image.end());
    batch.labels.push_back(set.labels[static_cast<std::size_t>(i)]);
  }
  batch.images = Tensor<float>({n, set.channels, rows, columns}, pixels);
  batch.targets =
      Tensor<float>({n, set.classes}, targets_of(batch.labels, set.classes, 0));
  return batch;
}

}  // namespace widenet::support

#endif  // WIDENET_EXAMPLES_SUPPORT_IMAGES_HPP

// augment.hpp - random changes of images that keep their class, as the paper's recipe makes them:
// RandAugment, a random crop that is resized, a flip, and mixup. All on the host; every random
// number is a function of seed, step and image.
//
// SPDX-License-Identifier: MIT

#ifndef WIDENET_EXAMPLES_SUPPORT_AUGMENT_HPP
#define WIDENET_EXAMPLES_SUPPORT_AUGMENT_HPP

#include "widenet.hpp"

#include <algorithm>  // clamp, max, min, minmax_element
#include <array>      // array
#include <cmath>      // exp, floor, log, lround, round, sqrt
#include <cstdint>    // int32_t, uint8_t
#include <numeric>    // accumulate
#include <utility>    // swap
#include <vector>     // vector

namespace widenet::support {

/// A grey image (one channel) or a coloured one (red, green, blue).
struct Image {
  Index channels = 1, rows = 0, columns = 0;
  std::vector<std::uint8_t> pixels;  // (channels, rows, columns)

  std::uint8_t& at(Index c, Index y, Index x) {
    return pixels[static_cast<std::size_t>((c * rows + y) * columns + x)];
  }
  std::uint8_t at(Index c, Index y, Index x) const {
    return pixels[static_cast<std::size_t>((c * rows + y) * columns + x)];
  }
  /// The same size and no pixels set.
  Image blank(std::uint8_t value = 0) const {
    return {channels, rows, columns, std::vector<std::uint8_t>(pixels.size(), value)};
  }
};

/// The random numbers of one image: 4096 of them, one after the other.
class Draws {
 public:
  Draws(const Rng& rng, Index image) : rng_(rng), next_(4096 * image) {}
  double uniform() { return rng_.uniform(next_++); }
  double uniform(double low, double high) { return low + (high - low) * uniform(); }
  /// A whole number in [0, n).
  Index below(Index n) { return std::min(n - 1, static_cast<Index>(double(n) * uniform())); }
  double sign() { return uniform() < 0.5 ? -1 : 1; }

 private:
  Rng rng_;
  Index next_;
};

// OPERATIONS --------------------------------------------------------------------------------------
//
// After tensorflow/models, official/vision/image_classification/augment.py, which the authors of
// WideNet use. Results that are no whole numbers are rounded down.

namespace detail {

inline std::uint8_t to_byte(double value) {
  return static_cast<std::uint8_t>(std::floor(std::clamp(value, 0.0, 255.0)));
}
template <class F>  // y = f(x) for every pixel
Image map_pixels(Image image, F f) {
  for (std::uint8_t& pixel : image.pixels) pixel = f(pixel);
  return image;
}
template <class F>  // y = table[x], where the table is made from all pixels of a channel
Image map_channels(Image image, F table_of) {
  const auto size = static_cast<std::ptrdiff_t>(image.rows * image.columns);
  for (auto from = image.pixels.begin(); from != image.pixels.end(); from += size) {
    const auto table = table_of(from, from + size);
    for (auto pixel = from; pixel != from + size; ++pixel) *pixel = table[*pixel];
  }
  return image;
}

}  // namespace detail

/// a + factor (b - a): a for 0, b for 1, more than b above 1; cut to [0, 255].
inline Image blend(const Image& a, Image b, double factor) {
  for (std::size_t i = 0; i < b.pixels.size(); ++i)
    b.pixels[i] =
        detail::to_byte(a.pixels[i] + factor * (double(b.pixels[i]) - double(a.pixels[i])));
  return b;
}

/// 0.299 red + 0.587 green + 0.114 blue in every channel; a grey image stays as it is.
inline Image grey(Image image) {
  if (image.channels == 1) return image;
  for (Index y = 0; y < image.rows; ++y)
    for (Index x = 0; x < image.columns; ++x) {
      const std::uint8_t value =
          detail::to_byte(0.299 * image.at(0, y, x) + 0.587 * image.at(1, y, x) +
                          0.114 * image.at(2, y, x) + 1e-9);  // 0.299 + 0.587 + 0.114 is below 1
      for (Index c = 0; c < 3; ++c) image.at(c, y, x) = value;
    }
  return image;
}

inline Image invert(const Image& image) {
  return detail::map_pixels(image, [](int x) { return static_cast<std::uint8_t>(255 - x); });
}
/// Inverts what is not below the threshold.
inline Image solarize(const Image& image, int threshold) {
  return detail::map_pixels(
      image, [=](int x) { return static_cast<std::uint8_t>(x < threshold ? x : 255 - x); });
}
/// Adds to what is below 128.
inline Image solarize_add(const Image& image, int addition) {
  return detail::map_pixels(image, [=](int x) {
    return static_cast<std::uint8_t>(x < 128 ? std::clamp(x + addition, 0, 255) : x);
  });
}
/// Keeps the highest bits.
inline Image posterize(const Image& image, int bits) {
  const int mask = 0xFF << (8 - std::clamp(bits, 0, 8)) & 0xFF;
  return detail::map_pixels(image, [=](int x) { return static_cast<std::uint8_t>(x & mask); });
}
inline Image brightness(const Image& image, double factor) {
  return blend(image.blank(), image, factor);
}
inline Image color(const Image& image, double factor) { return blend(grey(image), image, factor); }
/// Away from, or towards, the mean of the grey image.
///
///   Differs   the source divides the number of pixels by 256 where it means their mean
inline Image contrast(const Image& image, double factor) {
  const Image g = grey(image);
  const auto size = static_cast<std::ptrdiff_t>(image.rows * image.columns);
  const double sum = std::accumulate(g.pixels.begin(), g.pixels.begin() + size, 0.0);
  return blend(image.blank(detail::to_byte(sum / double(size))), image, factor);
}
/// Away from, or towards, the image smoothed by (1 1 1; 1 5 1; 1 1 1) / 13; the border stays.
inline Image sharpness(const Image& image, double factor) {
  Image smooth = image;
  for (Index c = 0; c < image.channels; ++c)
    for (Index y = 1; y + 1 < image.rows; ++y)
      for (Index x = 1; x + 1 < image.columns; ++x) {
        int sum = 4 * image.at(c, y, x);
        for (Index dy = -1; dy <= 1; ++dy)
          for (Index dx = -1; dx <= 1; ++dx) sum += image.at(c, y + dy, x + dx);
        smooth.at(c, y, x) = static_cast<std::uint8_t>(sum / 13);
      }
  return blend(smooth, image, factor);
}
/// Stretches every channel so that it reaches from 0 to 255; a channel of one value stays.
inline Image auto_contrast(const Image& image) {
  return detail::map_channels(image, [](auto begin, auto end) {
    const auto [low, high] = std::minmax_element(begin, end);
    const int a = *low, b = *high;
    std::array<std::uint8_t, 256> table{};
    for (int x = 0; x < 256; ++x)
      table[static_cast<std::size_t>(x)] = static_cast<std::uint8_t>(
          a == b ? x : std::clamp((x - a) * 255 / (b - a), 0, 255));
    return table;
  });
}
/// Spreads the values of every channel so that its histogram is as flat as it can be: with n pixels
/// of the largest value, step = (size - n) / 255 and y = (step / 2 + number of pixels below x) /
/// step, in whole numbers; a channel with step 0 stays.
inline Image equalize(const Image& image) {
  return detail::map_channels(image, [](auto begin, auto end) {
    std::array<int, 256> count{};
    for (auto pixel = begin; pixel != end; ++pixel) ++count[*pixel];
    const int size = static_cast<int>(end - begin);
    const int step = (size - count[*std::max_element(begin, end)]) / 255;
    std::array<std::uint8_t, 256> table{};
    int below = 0;
    for (std::size_t x = 0; x < 256; ++x) {
      table[x] = static_cast<std::uint8_t>(
          step == 0 ? static_cast<int>(x) : std::clamp((below + step / 2) / step, 0, 255));
      below += count[x];
    }
    return table;
  });
}

/// Pixel (x, y) of the result is the nearest one to (m0 x + m1 y + m2, m3 x + m4 y + m5), or 128 if
/// that lies outside.
inline Image affine(const Image& image, const std::array<double, 6>& m) {
  Image result = image.blank(128);
  for (Index y = 0; y < image.rows; ++y)
    for (Index x = 0; x < image.columns; ++x) {
      const double X = double(x), Y = double(y);
      const auto from_x = static_cast<Index>(std::round(m[0] * X + m[1] * Y + m[2]));
      const auto from_y = static_cast<Index>(std::round(m[3] * X + m[4] * Y + m[5]));
      if (from_x < 0 || from_x >= image.columns || from_y < 0 || from_y >= image.rows) continue;
      for (Index c = 0; c < image.channels; ++c) result.at(c, y, x) = image.at(c, from_y, from_x);
    }
  return result;
}
inline Image shear_x(const Image& image, double level) {
  return affine(image, {1, level, 0, 0, 1, 0});
}
inline Image shear_y(const Image& image, double level) {
  return affine(image, {1, 0, 0, level, 1, 0});
}
/// To the left by `pixels`, or to the right if they are negative.
inline Image translate_x(const Image& image, double pixels) {
  return affine(image, {1, 0, pixels, 0, 1, 0});
}
/// Up, or down if they are negative.
inline Image translate_y(const Image& image, double pixels) {
  return affine(image, {1, 0, 0, 0, 1, pixels});
}
/// Counter-clockwise about the centre, with y pointing down.
inline Image rotate(const Image& image, double degrees) {
  const double c = math::cos_2pi(degrees / 360), s = math::sin_2pi(degrees / 360);
  const double x = double(image.columns - 1) / 2, y = double(image.rows - 1) / 2;
  return affine(image, {c, -s, x - c * x + s * y, s, c, y - s * x - c * y});
}
/// A square of 128, of side 2 `half`, about a pixel; what is outside the image is cut.
inline Image cutout(Image image, Index half, Index y, Index x) {
  for (Index c = 0; c < image.channels; ++c)
    for (Index i = std::max<Index>(0, y - half); i < std::min(image.rows, y + half); ++i)
      for (Index j = std::max<Index>(0, x - half); j < std::min(image.columns, x + half); ++j)
        image.at(c, i, j) = 128;
  return image;
}

inline Image flip(Image image) {
  for (Index c = 0; c < image.channels; ++c)
    for (Index y = 0; y < image.rows; ++y)
      for (Index x = 0; x < image.columns / 2; ++x)
        std::swap(image.at(c, y, x), image.at(c, y, image.columns - 1 - x));
  return image;
}

// RANDAUGMENT -------------------------------------------------------------------------------------

/// A few operations in a row, each drawn from sixteen, all of the same magnitude.
///
///   Source    Cubuk et al., RandAugment, arXiv 1909.13719; magnitudes as in the source above
///   Differs   half the side of a cutout, 40, and the largest translation, 100, are for 224 pixels
///             there whatever the image; here they are scaled with the image
struct RandAugment {
  Index layers = 2;
  double magnitude = 15;  // 10 is the largest of the source's scale; the paper goes beyond

  static constexpr Index num_operations = 16;
  Image operator()(Image image, Draws& draws) const {
    for (Index i = 0; i < layers; ++i) image = apply(draws.below(num_operations), image, draws);
    return image;
  }

  /// Operation `which` of the sixteen.
  Image apply(Index which, const Image& image, Draws& draws) const {
    const double level = magnitude / 10, side = double(std::max(image.rows, image.columns)) / 224;
    const auto whole = [=](double largest) { return static_cast<int>(level * largest); };
    const double enhance = 1.8 * level + 0.1;
    switch (which) {
      case 0: return auto_contrast(image);
      case 1: return equalize(image);
      case 2: return invert(image);
      case 3: return rotate(image, draws.sign() * 30 * level);
      case 4: return posterize(image, whole(4));
      case 5: return solarize(image, whole(256));
      case 6: return solarize_add(image, whole(110));
      case 7: return color(image, enhance);
      case 8: return contrast(image, enhance);
      case 9: return brightness(image, enhance);
      case 10: return sharpness(image, enhance);
      case 11: return shear_x(image, draws.sign() * 0.3 * level);
      case 12: return shear_y(image, draws.sign() * 0.3 * level);
      case 13: return translate_x(image, draws.sign() * 100 * side * level);
      case 14: return translate_y(image, draws.sign() * 100 * side * level);
      default: {
        const Index y = draws.below(image.rows), x = draws.below(image.columns);
        return cutout(image, static_cast<Index>(40 * side * level), y, x);
      }
    }
  }
};

// CROP AND RESIZE ---------------------------------------------------------------------------------

struct Box { Index top = 0, left = 0, rows = 0, columns = 0; };

inline Image crop(const Image& image, const Box& box) {
  Image result{image.channels, box.rows, box.columns, {}};
  for (Index c = 0; c < image.channels; ++c)
    for (Index y = 0; y < box.rows; ++y)
      for (Index x = 0; x < box.columns; ++x)
        result.pixels.push_back(image.at(c, box.top + y, box.left + x));
  return result;
}

/// A box whose area, as a fraction of the image, is uniform in [smallest, 1] and whose aspect ratio
/// has a uniform logarithm in [3/4, 4/3]; the whole image if ten draws do not fit into it.
///
///   Source    Szegedy et al., Going Deeper with Convolutions, arXiv 1409.4842
///   Differs   TensorFlow draws the ratio itself uniformly, and tries a hundred times
inline Box random_box(Index rows, Index columns, double smallest, Draws& draws) {
  for (int attempt = 0; attempt < 10; ++attempt) {
    const double area = draws.uniform(smallest, 1) * double(rows * columns);
    const double ratio = std::exp(draws.uniform(std::log(3.0 / 4), std::log(4.0 / 3)));
    const auto width = static_cast<Index>(std::lround(std::sqrt(area * ratio)));
    const auto height = static_cast<Index>(std::lround(std::sqrt(area / ratio)));
    if (width < 1 || width > columns || height < 1 || height > rows) continue;
    return {draws.below(rows - height + 1), draws.below(columns - width + 1), height, width};
  }
  return {0, 0, rows, columns};
}

/// Bilinear, between the centres of pixels, without smoothing; outside, the border goes on. An
/// image of the same size stays as it is.
inline std::vector<float> resize(const Image& image, Index rows, Index columns) {
  struct Place { Index low, high; float weight; };  // of `high`
  const auto place = [](Index i, Index to, Index from) {
    const double at = std::clamp((double(i) + 0.5) * double(from) / double(to) - 0.5, 0.0,
                                 double(from - 1));
    const auto low = static_cast<Index>(at);
    return Place{low, std::min(low + 1, from - 1), float(at - double(low))};
  };
  std::vector<float> result;
  for (Index c = 0; c < image.channels; ++c)
    for (Index y = 0; y < rows; ++y)
      for (Index x = 0; x < columns; ++x) {
        const Place v = place(y, rows, image.rows), h = place(x, columns, image.columns);
        const auto along = [&](Index row) {
          const float low = image.at(c, row, h.low), high = image.at(c, row, h.high);
          return low + h.weight * (high - low);
        };
        const float above = along(v.low), below = along(v.high);
        result.push_back(above + v.weight * (below - above));
      }
  return result;
}

// THE RECIPE --------------------------------------------------------------------------------------

struct Augmentation {
  RandAugment rand_augment;     // layers = 0: none
  double smallest_crop = 0.05;  // as a fraction of the area; 1: no crop
  bool flips = true, mixes = true;
};

/// One image as the model sees it, (channels, rows, columns): RandAugment, crop, flip, resize, and
/// (x - 127.5) / 127.5.
inline std::vector<float> augmented(const Image& image, const Augmentation& how, Index rows,
                                    Index columns, Draws draws) {
  Image changed = how.rand_augment(image, draws);
  if (how.smallest_crop < 1)
    changed = crop(changed, random_box(image.rows, image.columns, how.smallest_crop, draws));
  if (how.flips && draws.uniform() < 0.5) changed = flip(changed);
  std::vector<float> values = resize(changed, rows, columns);
  for (float& value : values) value = (value - 127.5f) / 127.5f;
  return values;
}

/// u uniform in (0, 1) makes this a Beta(1/2, 1/2): sin(pi u / 2)^2, the inverse of its
/// distribution 2 / pi arcsin(sqrt(x)).
inline double beta_half_half(double u) { return (1 - math::cos_2pi(u / 2)) / 2; }

/// Mixup: every image b becomes w x[b] + (1 - w) x[partner of b], and so does its target. The
/// partners are a random order of the batch, and w is drawn for every image from Beta(1/2, 1/2).
///
///   Shapes    images B times any size, targets B times the classes
///   Source    Zhang et al., mixup, arXiv 1710.09412; one w per image as in the authors' code
///   Differs   the authors mix two batches that are drawn apart; the paper of mixup has one w
inline void mixup(std::vector<float>& images, std::vector<float>& targets, Index B,
                  const Rng& rng) {
  const std::vector<Index> partner = permutation(B, rng.at_block(2));
  const auto mix = [&](std::vector<float>& values) {
    const std::vector<float> before = values;
    const std::size_t size = values.size() / static_cast<std::size_t>(B);
    for (std::size_t b = 0; b < static_cast<std::size_t>(B); ++b) {
      const auto w = float(beta_half_half(rng.at_block(1).uniform(static_cast<Index>(b))));
      const std::size_t other = static_cast<std::size_t>(partner[b]);
      for (std::size_t i = 0; i < size; ++i)
        values[b * size + i] = w * before[b * size + i] + (1 - w) * before[other * size + i];
    }
  };
  mix(images);
  mix(targets);
}

/// The targets of labels, (B, classes): 1 - smoothing at the label, plus smoothing / classes.
inline std::vector<float> targets_of(const std::vector<std::int32_t>& labels, Index classes,
                                     double smoothing) {
  const auto V = static_cast<std::size_t>(classes);
  std::vector<float> targets(labels.size() * V, float(smoothing / double(classes)));
  for (std::size_t b = 0; b < labels.size(); ++b)
    targets[b * V + static_cast<std::size_t>(labels[b])] += float(1 - smoothing);
  return targets;
}

}  // namespace widenet::support

#endif  // WIDENET_EXAMPLES_SUPPORT_AUGMENT_HPP

// Tests for examples/support: augmentation, files of CIFAR, folders of images, recipes.
#include "check.hpp"
#include "support/digits.hpp"
#include "support/images.hpp"
#include "support/recipes.hpp"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <numeric>

using namespace widenet;
using namespace widenet::support;

namespace {

using Bytes = std::vector<std::uint8_t>;

Image grey_image(Index rows, Index columns, const Bytes& pixels) {
  return {1, rows, columns, pixels};
}
/// One row of three pixels, coloured.
const Image rgb = {3, 1, 3, {255, 0, 0, 0, 255, 0, 0, 0, 100}};

/// 1, 2, ..., rows * columns.
Image numbered(Index rows, Index columns) {
  Bytes pixels(static_cast<std::size_t>(rows * columns));
  std::iota(pixels.begin(), pixels.end(), std::uint8_t(1));
  return grey_image(rows, columns, pixels);
}

struct Folder {
  std::filesystem::path path = std::filesystem::temp_directory_path() /
                               ("widenet_test_images_" + std::to_string(getpid()));
  Folder() { std::filesystem::create_directories(path); }
  ~Folder() { std::filesystem::remove_all(path); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  std::string write(const std::string& name, const Bytes& bytes) const {
    std::ofstream file(path / name, std::ios::binary);
    for (const std::uint8_t byte : bytes) file.put(static_cast<char>(byte));
    return (path / name).string();
  }
};

/// What f throws, with the folder cut out.
std::string error_of(const Folder& folder, const std::function<void()>& f) {
  std::string text = "no error";
  try {
    f();
  } catch (const Error& error) {
    text = error.what();
  }
  const std::string cut = folder.path.string() + "/";
  const std::size_t at = text.find(cut);
  return at == std::string::npos ? text : text.erase(at, cut.size());
}

/// Records of CIFAR: the labels, then pixels first, first + 1, ...
Bytes record(const Bytes& labels, int first) {
  Bytes bytes = labels;
  for (int i = 0; i < 3072; ++i) bytes.push_back(static_cast<std::uint8_t>(first + i));
  return bytes;
}

const Rng rng(5);

}  // namespace

TEST_SUITE("support: augment") {

TEST_CASE("augment: known values, pixel by pixel") {
  const Image x = grey_image(1, 5, {0, 100, 127, 128, 255});
  CHECK(invert(x).pixels == Bytes{255, 155, 128, 127, 0});
  CHECK(solarize(x, 128).pixels == Bytes{0, 100, 127, 127, 0});
  CHECK(solarize(x, 384).pixels == x.pixels);
  CHECK(solarize_add(x, 110).pixels == Bytes{110, 210, 237, 128, 255});
  CHECK(solarize_add(x, 165).pixels == Bytes{165, 255, 255, 128, 255});
  CHECK(posterize(x, 1).pixels == Bytes{0, 0, 0, 128, 128});
  CHECK(posterize(x, 6).pixels == Bytes{0, 100, 124, 128, 252});
  CHECK(posterize(x, 8).pixels == x.pixels);
  CHECK(posterize(x, 0).pixels == Bytes(5, 0));
  CHECK(brightness(x, 0.5).pixels == Bytes{0, 50, 63, 64, 127});
  CHECK(brightness(x, 2.8).pixels == Bytes{0, 255, 255, 255, 255});
  CHECK(blend(x, invert(x), 0).pixels == x.pixels);
  CHECK(blend(x, invert(x), 1).pixels == invert(x).pixels);
}

TEST_CASE("augment: colours and contrast") {
  CHECK(grey(rgb).pixels == Bytes{76, 149, 11, 76, 149, 11, 76, 149, 11});  // 0.299, 0.587, 0.114
  CHECK(grey({3, 1, 1, {200, 200, 200}}).pixels == Bytes{200, 200, 200});
  CHECK(color(rgb, 1).pixels == rgb.pixels);
  CHECK(color(rgb, 0).pixels == grey(rgb).pixels);
  CHECK(color(rgb, 0.5).pixels == Bytes{165, 74, 5, 38, 202, 5, 38, 74, 55});
  const Image x = grey_image(2, 2, {0, 100, 100, 200});  // the mean is 100
  CHECK(contrast(x, 0).pixels == Bytes(4, 100));
  CHECK(contrast(x, 1).pixels == x.pixels);
  CHECK(contrast(x, 1.5).pixels == Bytes{0, 100, 100, 250});
  CHECK(contrast(rgb, 0).pixels == Bytes(9, 78));  // (76 + 149 + 11) / 3
}

TEST_CASE("augment: sharpness smooths the inside by (1 1 1; 1 5 1; 1 1 1) / 13") {
  const Image x = grey_image(3, 3, {1, 2, 3, 4, 130, 6, 7, 8, 9});
  const Bytes smooth = {1, 2, 3, 4, (40 + 650) / 13, 6, 7, 8, 9};
  CHECK(sharpness(x, 0).pixels == smooth);
  CHECK(sharpness(x, 1).pixels == x.pixels);
  CHECK(sharpness(x, 2).pixels == Bytes{1, 2, 3, 4, 2 * 130 - 690 / 13, 6, 7, 8, 9});
}

TEST_CASE("augment: auto_contrast and equalize work channel by channel") {
  CHECK(auto_contrast({3, 1, 3, {10, 20, 30, 7, 7, 7, 0, 1, 255}}).pixels ==
        Bytes{0, 127, 255, 7, 7, 7, 0, 1, 255});
  // 512 pixels: 256 of value 3, 128 of 4, 127 of 9, one of 200: step = 511 / 255 = 2, and a value
  // becomes (1 + number of pixels below) / 2.
  Bytes pixels(256, 3);
  pixels.insert(pixels.end(), 128, 4), pixels.insert(pixels.end(), 127, 9);
  pixels.push_back(200);
  const Bytes flat = equalize(grey_image(16, 32, pixels)).pixels;
  CHECK(flat[0] == 0);
  CHECK(flat[256] == 128);
  CHECK(flat[384] == 192);
  CHECK(flat[511] == 255);
  CHECK(equalize(numbered(4, 4)).pixels == numbered(4, 4).pixels);  // step 0
}

TEST_CASE("augment: moves, with 128 where nothing was") {
  const Image x = numbered(3, 4);
  CHECK(translate_x(x, 1).pixels == Bytes{2, 3, 4, 128, 6, 7, 8, 128, 10, 11, 12, 128});
  CHECK(translate_x(x, -2).pixels == Bytes{128, 128, 1, 2, 128, 128, 5, 6, 128, 128, 9, 10});
  CHECK(translate_y(x, 1).pixels == Bytes{5, 6, 7, 8, 9, 10, 11, 12, 128, 128, 128, 128});
  CHECK(shear_x(x, 1).pixels == Bytes{1, 2, 3, 4, 6, 7, 8, 128, 11, 12, 128, 128});
  CHECK(shear_y(x, -1).pixels == Bytes{1, 128, 128, 128, 5, 2, 128, 128, 9, 6, 3, 128});
  const Image square = numbered(3, 3);
  CHECK(rotate(square, 90).pixels == Bytes{3, 6, 9, 2, 5, 8, 1, 4, 7});
  CHECK(rotate(square, -90).pixels == Bytes{7, 4, 1, 8, 5, 2, 9, 6, 3});
  CHECK(rotate(x, 180).pixels == Bytes{12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1});
  CHECK(rotate(x, 0).pixels == x.pixels);
  CHECK(cutout(x, 1, 0, 3).pixels == Bytes{1, 2, 128, 128, 5, 6, 7, 8, 9, 10, 11, 12});
  CHECK(cutout(x, 0, 1, 1).pixels == x.pixels);
  CHECK(flip(x).pixels == Bytes{4, 3, 2, 1, 8, 7, 6, 5, 12, 11, 10, 9});
  CHECK(flip(rgb).pixels == Bytes{0, 0, 255, 0, 255, 0, 100, 0, 0});
  CHECK(crop(x, {1, 2, 2, 1}).pixels == Bytes{7, 11});
}

TEST_CASE("augment: resize is bilinear between the centres of pixels") {
  const Image x = grey_image(1, 2, {0, 100});
  CHECK(resize(x, 1, 2) == std::vector<float>{0, 100});
  CHECK(resize(x, 1, 4) == std::vector<float>{0, 25, 75, 100});
  CHECK(resize(x, 2, 1) == std::vector<float>{50, 50});
  CHECK(resize(grey_image(2, 2, {0, 100, 40, 140}), 1, 1) == std::vector<float>{70});
  const std::vector<float> same = resize(rgb, 1, 3);
  CHECK(std::equal(same.begin(), same.end(), rgb.pixels.begin()));
}

TEST_CASE("augment: random boxes lie in the image, of the areas and ratios asked for") {
  Draws draws(rng, 0);
  double smallest = 1, largest = 0;
  for (int i = 0; i < 300; ++i) {
    const Box box = random_box(40, 60, 0.05, draws);
    CHECK(box.top >= 0);
    CHECK(box.left >= 0);
    CHECK(box.top + box.rows <= 40);
    CHECK(box.left + box.columns <= 60);
    const double area = double(box.rows * box.columns) / 2400;
    smallest = std::min(smallest, area), largest = std::max(largest, area);
    const double ratio = double(box.columns) / double(box.rows);
    const bool is_whole = box.rows == 40 && box.columns == 60;
    CHECK((is_whole || (ratio > 0.7 && ratio < 1.43)));  // 3/4 to 4/3, rounded to pixels
    CHECK(area > 0.045);
  }
  CHECK(smallest < 0.1);
  CHECK(largest > 0.7);
  const Box all = random_box(1, 100, 0.9, draws);  // no such box has a ratio near 1
  CHECK(all.rows == 1);
  CHECK(all.columns == 100);
}

TEST_CASE("augment: RandAugment draws every operation, of the magnitude asked for") {
  const Image x = numbered(12, 14);
  Draws draws(rng, 0);
  const RandAugment strong{1, 15}, none{0, 15};
  CHECK(none(x, draws).pixels == x.pixels);
  CHECK(strong.apply(2, x, draws).pixels == invert(x).pixels);
  CHECK(strong.apply(4, x, draws).pixels == posterize(x, 6).pixels);
  CHECK(strong.apply(5, x, draws).pixels == x.pixels);  // the threshold is 384
  CHECK(RandAugment{1, 2}.apply(5, x, draws).pixels == solarize(x, 51).pixels);
  CHECK(strong.apply(6, x, draws).pixels == solarize_add(x, 165).pixels);
  CHECK(strong.apply(8, x, draws).pixels == contrast(x, 1.8 * 1.5 + 0.1).pixels);
  CHECK(RandAugment{1, 4}.apply(9, x, draws).pixels == brightness(x, 1.8 * 0.4 + 0.1).pixels);
  bool turns[2] = {false, false};
  for (int i = 0; i < 20; ++i) {
    const Bytes turned = strong.apply(3, x, draws).pixels;
    turns[0] = turns[0] || turned == rotate(x, 45).pixels;
    turns[1] = turns[1] || turned == rotate(x, -45).pixels;
    CHECK((turned == rotate(x, 45).pixels || turned == rotate(x, -45).pixels));
  }
  CHECK((turns[0] && turns[1]));
  const Image wide{1, 1, 224, numbered(1, 224).pixels};  // at 224 pixels as in the source
  const Bytes moved = RandAugment{1, 1}.apply(13, wide, draws).pixels;
  CHECK((moved == translate_x(wide, 10).pixels || moved == translate_x(wide, -10).pixels));

  // What one layer makes of the image is always one of the sixteen; all of them come.
  std::vector<int> seen(16, 0);
  for (Index image = 0; image < 400; ++image) {
    Draws once(rng, image), again(rng, image);
    const Bytes result = strong(x, once).pixels;
    const Index which = again.below(16);
    CHECK(result == strong.apply(which, x, again).pixels);
    ++seen[static_cast<std::size_t>(which)];
  }
  for (const int count : seen) CHECK(count > 8);  // 25 expected
}

TEST_CASE("augment: an image is a function of seed, step and image") {
  const Image x = {3, 9, 11, Bytes(3 * 9 * 11, 40)};
  Image y = x;
  for (std::size_t i = 0; i < y.pixels.size(); ++i) y.pixels[i] = static_cast<std::uint8_t>(7 * i);
  const Augmentation how;
  const auto at = [&](std::uint64_t seed, Index step, Index image) {
    return augmented(y, how, 8, 8, Draws(Rng(seed).at_step(step), image));
  };
  const std::vector<float> first = at(1, 2, 3);
  CHECK(first.size() == 3 * 8 * 8);
  CHECK(at(1, 2, 3) == first);
  CHECK(at(2, 2, 3) != first);
  CHECK(at(1, 3, 3) != first);
  CHECK(at(1, 2, 4) != first);
  for (const float value : first) CHECK(std::fabs(value) <= 1);
  const Augmentation none{{0, 0}, 1, false, false};
  const std::vector<float> plain = augmented(x, none, 9, 11, Draws(rng, 0));
  CHECK(plain == std::vector<float>(3 * 9 * 11, (40 - 127.5f) / 127.5f));
}

TEST_CASE("augment: one image in two is flipped, and nothing else happens to it") {
  const Image x = numbered(2, 3);
  const Augmentation only_flips{{0, 0}, 1, true, false}, none{{0, 0}, 1, false, false};
  const std::vector<float> plain = augmented(x, none, 2, 3, Draws(rng, 0));
  const std::vector<float> flipped = augmented(flip(x), none, 2, 3, Draws(rng, 0));
  Index count = 0;
  for (Index image = 0; image < 400; ++image) {
    const std::vector<float> y = augmented(x, only_flips, 2, 3, Draws(rng, image));
    CHECK((y == plain || y == flipped));
    count += y == flipped ? 1 : 0;
  }
  CHECK(count > 160);
  CHECK(count < 240);
}

TEST_CASE("mixup: the weights are Beta(1/2, 1/2)") {
  CHECK(std::fabs(beta_half_half(0.5) - 0.5) < 1e-12);
  CHECK(std::fabs(beta_half_half(1.0 / 3) - 0.25) < 1e-12);
  std::vector<double> w;
  double mean = 0, variance = 0;
  for (Index i = 0; i < 20000; ++i) w.push_back(beta_half_half(rng.uniform(i)));
  for (const double x : w) mean += x / 20000;
  for (const double x : w) variance += (x - mean) * (x - mean) / 20000;
  CHECK(std::fabs(mean - 0.5) < 0.01);
  CHECK(std::fabs(variance - 0.125) < 0.003);
  const auto below = std::count_if(w.begin(), w.end(), [](double x) { return x < 0.1; });
  CHECK(std::fabs(double(below) / 20000 - 0.20483) < 0.01);  // 2 / pi arcsin(sqrt 0.1)
}

TEST_CASE("mixup: images and targets are mixed alike, each with its partner") {
  const Index B = 7;
  std::vector<float> images, targets = targets_of({0, 1, 2, 3, 4, 5, 6}, 7, 0);
  for (Index b = 0; b < B; ++b)
    for (Index i = 0; i < 3; ++i) images.push_back(float(std::ldexp(1, static_cast<int>(b))));
  mixup(images, targets, B, rng);
  Index num_mixed = 0;
  for (std::size_t b = 0; b < 7; ++b) {
    float sum = 0, value = 0;
    Index parts = 0;
    for (std::size_t v = 0; v < 7; ++v) {
      sum += targets[7 * b + v];
      value += targets[7 * b + v] * float(std::ldexp(1, static_cast<int>(v)));
      parts += targets[7 * b + v] > 0 ? 1 : 0;
    }
    CHECK(std::fabs(sum - 1) < 1e-6f);
    CHECK(parts <= 2);
    num_mixed += parts == 2 ? 1 : 0;
    for (std::size_t i = 0; i < 3; ++i) CHECK(std::fabs(images[3 * b + i] - value) < 1e-4f * value);
    CHECK(targets[8 * b] > 0);
  }
  CHECK(num_mixed >= 4);
}

TEST_CASE("targets_of: label smoothing") {
  const std::vector<float> targets = targets_of({2, 0}, 4, 0.2);
  const std::vector<float> expected = {0.05f, 0.05f, 0.85f, 0.05f, 0.85f, 0.05f, 0.05f, 0.05f};
  REQUIRE(targets.size() == expected.size());
  for (std::size_t i = 0; i < 8; ++i) CHECK(std::fabs(targets[i] - expected[i]) < 1e-6f);
}

}  // TEST_SUITE

TEST_SUITE("support: cifar") {

TEST_CASE("read_cifar: known files, one after the other") {
  const Folder folder;
  Bytes two = record({7}, 1);
  const Bytes second = record({0}, 9);
  two.insert(two.end(), second.begin(), second.end());
  ImageSet set;
  read_cifar(folder.write("a", two), Cifar::ten, set);
  CHECK(set.count == 2);
  CHECK(set.channels == 3);
  CHECK(set.rows == 32);
  CHECK(set.classes == 10);
  CHECK(set.labels == std::vector<std::int32_t>{7, 0});
  CHECK(image_at(set, 1).at(0, 0, 0) == 9);
  CHECK(image_at(set, 1).at(2, 31, 31) == static_cast<std::uint8_t>(9 + 3071));
  read_cifar(folder.write("b", record({9}, 3)), Cifar::ten, set);
  CHECK(set.count == 3);
  CHECK(set.labels == std::vector<std::int32_t>{7, 0, 9});
  CHECK(set.pixels.size() == 3 * 3072);
  CHECK(image_at(set, 2).at(0, 0, 1) == 4);

  ImageSet hundred;
  read_cifar(folder.write("c", record({19, 99}, 5)), Cifar::hundred, hundred);
  CHECK(hundred.labels == std::vector<std::int32_t>{99});
  CHECK(hundred.classes == 100);
  CHECK(image_at(hundred, 0).at(0, 0, 0) == 5);
}

TEST_CASE("read_cifar: errors") {
  const Folder folder;
  const auto error = [&](const Bytes& bytes, Cifar kind) {
    ImageSet set;
    const std::string path = folder.write("file", bytes);
    const std::string text = error_of(folder, [&] { read_cifar(path, kind, set); });
    CHECK(set.count == 0);
    CHECK(set.pixels.empty());
    return text;
  };
  const Bytes good = record({7}, 1);
  Bytes cut = good;
  cut.insert(cut.end(), good.begin(), good.end() - 1);
  CHECK(error(cut, Cifar::ten) ==
        "widenet: read_cifar: file: at byte 3073: a record must have 3073 bytes; got 3072 and the "
        "end of the file");
  CHECK(error({}, Cifar::ten) ==
        "widenet: read_cifar: file: at byte 0: a record must have 3073 bytes; got 0 and the end of "
        "the file");
  CHECK(error(good, Cifar::hundred) ==
        "widenet: read_cifar: file: at byte 0: a record must have 3074 bytes; got 3073 and the end "
        "of the file; hint: the size is that of CIFAR-10");
  Bytes twice = good;
  const Bytes bad = record({10}, 0);
  twice.insert(twice.end(), bad.begin(), bad.end());
  CHECK(error(twice, Cifar::ten) ==
        "widenet: read_cifar: file: at byte 3073: a label must be below the 10 classes; got 10");
  CHECK(error(record({20, 0}, 0), Cifar::hundred) ==
        "widenet: read_cifar: file: at byte 0: a label must be below the 20 superclasses; got 20");
  CHECK(error(record({0, 100}, 0), Cifar::hundred) ==
        "widenet: read_cifar: file: at byte 1: a label must be below the 100 classes; got 100");
  ImageSet set;
  CHECK(error_of(folder, [&] {
          read_cifar(folder.path.string() + "/none", Cifar::ten, set);
        }) == "widenet: read_cifar: none: must be a file; got: No such file or directory");
  read_cifar(folder.write("file", good), Cifar::ten, set);
  CHECK_THROWS_AS(read_cifar(folder.write("other", record({0, 0}, 0)), Cifar::hundred, set),
                  ShapeError);
}

TEST_CASE("load_image_set: finds IDX, CIFAR-10 and CIFAR-100; errors") {
  {
    const ImageSet digits = load_image_set("data/digits", "test");
    const LabelledImages same = load_images("data/digits", "test");
    CHECK(digits.count == same.count);
    CHECK(digits.labels == same.labels);
    CHECK(*std::max_element(digits.pixels.begin(), digits.pixels.end()) == 255);
    const ImageBatch batch = evaluation_batch(digits, 3, 2, digits.rows, digits.columns);
    const std::vector<float> ours = batch.images.to_vector();
    const std::vector<float> theirs = same.slice(3, 2).pixels;  // not rounded to bytes
    for (std::size_t i = 0; i < ours.size(); ++i) CHECK(std::fabs(ours[i] - theirs[i]) < 0.0041f);
  }
  {
    const Folder folder;
    for (int i = 1; i <= 5; ++i)
      folder.write("data_batch_" + std::to_string(i) + ".bin",
                   record({static_cast<std::uint8_t>(i)}, 0));
    folder.write("test_batch.bin", record({8}, 0));
    CHECK(load_image_set(folder.path.string(), "train").labels ==
          std::vector<std::int32_t>{1, 2, 3, 4, 5});
    CHECK(load_image_set(folder.path.string(), "test").labels == std::vector<std::int32_t>{8});
  }
  {
    const Folder folder;
    folder.write("train.bin", record({1, 55}, 0));
    CHECK(load_image_set(folder.path.string(), "train").labels == std::vector<std::int32_t>{55});
    std::string text = error_of(folder, [&] { load_image_set(folder.path.string(), "test"); });
    const std::size_t at = text.find(folder.path.string());
    CHECK(text.erase(at, folder.path.string().size()) ==
          "widenet: load_image_set: : there must be test-images-idx3-ubyte (IDX), test_batch.bin "
          "(CIFAR-10) or test.bin (CIFAR-100); got none of them");
    folder.write("train-images-idx3-ubyte.gz", {0x1F});
    text = error_of(folder, [&] { load_image_set(folder.path.string(), "test"); });
    CHECK(text.find("got none of them; hint: gunzip the files there") != std::string::npos);
  }
}

TEST_CASE("images: batches of a step, sets split") {
  ImageSet set = load_image_set("data/digits", "train");
  std::vector<Index> seen;
  const Index steps = set.count / 64;
  for (Index step = 0; step < steps; ++step)
    for (const Index i : images_of_step(set.count, 64, rng, step)) seen.push_back(i);
  std::vector<Index> sorted = seen;
  std::sort(sorted.begin(), sorted.end());
  CHECK(std::adjacent_find(sorted.begin(), sorted.end()) == sorted.end());  // each once
  const std::vector<Index> next = images_of_step(set.count, 64, rng, steps);
  CHECK(!std::equal(next.begin(), next.end(), seen.begin()));
  CHECK_THROWS_WITH_AS(images_of_step(10, 11, rng, 0),
                       "widenet: images_of_step: the batch size must lie in [1, 10]; got 11",
                       ValueError);

  const ImageBatch batch = training_batch(set, 5, Augmentation(), 0.1, 12, 10, rng, 3);
  CHECK(batch.images.shape() == Shape{5, 1, 12, 10});
  CHECK(batch.targets.shape() == Shape{5, 10});
  const ImageBatch again = training_batch(set, 5, Augmentation(), 0.1, 12, 10, rng, 3);
  CHECK(check::same_bits(batch.images.to_vector(), again.images.to_vector()));
  CHECK(check::same_bits(batch.targets.to_vector(), again.targets.to_vector()));

  const Index count = set.count;
  const Image last = image_at(set, count - 1), first = image_at(set, 0);
  const ImageSet held_out = split_off(set, 3);
  CHECK(held_out.count == 3);
  CHECK(set.count == count - 3);
  CHECK(image_at(held_out, 2).pixels == last.pixels);
  CHECK(image_at(set, 0).pixels == first.pixels);
  CHECK(set.labels.size() == static_cast<std::size_t>(count - 3));
  CHECK_THROWS_AS(split_off(set, set.count), ValueError);
  CHECK_THROWS_AS(split_off(set, 0), ValueError);
}

}  // TEST_SUITE

TEST_SUITE("support: recipes") {

TEST_CASE("recipes: images") {
  const VisionRecipe r = imagenet_recipe();
  CHECK(r.optimizer == OptimizerKind::lamb);
  CHECK(r.learning_rate == 0.01);
  CHECK(r.weight_decay == 0.1);
  CHECK(r.batch == 4096);
  CHECK(r.epochs == 300);
  CHECK(r.warmup_epochs == 30);
  CHECK(r.clip_norm == 1);
  CHECK(r.dropout == 0.1);
  CHECK(r.label_smoothing == 0.1);
  CHECK(r.balance_weight == 0.01);
  CHECK(r.augmentation.rand_augment.layers == 2);
  CHECK(r.augmentation.rand_augment.magnitude == 15);
  CHECK(r.augmentation.smallest_crop == 0.05);
  CHECK(r.augmentation.flips);
  CHECK(r.augmentation.mixes);
  const Schedule rate = r.schedule(/*steps_per_epoch=*/100);  // linear up, linear down
  check::close({rate(0), rate(1500), rate(3000), rate(16500), rate(30000)},
               {1e-5, (0.01 + 1e-5) / 2, 0.01, (0.01 + 1e-5) / 2, 1e-5});

  const VisionRecipe f = cifar10_finetune_recipe();
  CHECK(f.optimizer == OptimizerKind::sgd);
  CHECK(f.momentum == 0.9);
  CHECK(f.learning_rate == 0.03);
  CHECK(f.decay == Schedule::Decay::cosine);
  CHECK(f.batch == 512);
  CHECK(f.epochs == 100);
  CHECK(f.clip_norm == 1);
  CHECK(!f.augmentation.mixes);
  check::close({f.schedule(10)(0), f.schedule(10)(500), f.schedule(10)(1000)}, {0.03, 0.015, 0});

  const VisionRecipe s = cifar10_scratch_recipe();
  CHECK(s.optimizer == OptimizerKind::lamb);
  CHECK(s.learning_rate == 1e-3);
  CHECK(s.batch == 256);
  CHECK(s.weight_decay == 1e-3);
}

TEST_CASE("recipes: text, the table of fine-tuning") {
  struct Row {
    const char* name;
    Index steps, warmup, batch, tokens;
    double rate, capacity, lambda, dropout;
  };
  for (const Row& row : {Row{"squad1", 3649, 365, 48, 384, 5e-5, 2.0, 0, 0.1},
                         Row{"squad2", 8144, 814, 48, 512, 3e-5, 1.2, 0.01, 0},
                         Row{"mnli", 10000, 1000, 128, 512, 3e-5, 1.2, 0.01, 0},
                         Row{"sst2", 5234, 314, 128, 512, 4e-5, 1.2, 0.01, 0}}) {
    const LanguageRecipe r = recipe_named(finetuning_recipes(), row.name);
    INFO(row.name);
    CHECK(r.steps == row.steps);
    CHECK(r.warmup == row.warmup);
    CHECK(r.batch == row.batch);
    CHECK(r.tokens == row.tokens);
    CHECK(r.learning_rate == row.rate);
    CHECK(double(r.capacity_factor.numerator) / double(r.capacity_factor.denominator) ==
          row.capacity);
    CHECK(r.balance_weight == row.lambda);
    CHECK(r.dropout == row.dropout);
    check::close({r.schedule()(0), r.schedule()(r.warmup), r.schedule()(r.steps)},
                 {0, row.rate, 0});
  }
  CHECK_THROWS_WITH_AS(recipe_named(finetuning_recipes(), "cola"),
                       "widenet: recipe: the name must be one of squad1 squad2 mnli sst2; got cola",
                       ValueError);
  const LanguageRecipe p = albert_pretraining_recipe();
  CHECK(p.steps == 125000);
  CHECK(p.warmup == 3125);
  CHECK(p.batch == 4096);
  CHECK(p.tokens == 512);
  CHECK(p.learning_rate == 0.00176);
}

}  // TEST_SUITE

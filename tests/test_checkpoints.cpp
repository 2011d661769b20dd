// Tests for chapter 15: JSON, safetensors, hostile files, checkpoints, failing and dying writers.
// Links with -Wl,--wrap=open,--wrap=write,--wrap=fsync,--wrap=close,--wrap=rename
// so that each of these calls can be made to fail.
#include "check.hpp"

#include <sys/resource.h>
#include <sys/wait.h>

#include <algorithm>
#include <cerrno>
#include <cstdarg>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <locale>
#include <set>

using namespace widenet;

namespace {

// What the next system calls do. Off unless a test switches it on.
struct Faults {
  bool is_on = false;
  std::string call;             // which call fails ...
  int countdown = 0;            // ... after how many that succeed
  int error = 0;                // with which errno; 0: it does not fail
  bool dies = false;            // the process ends there, in the middle of a write
  bool interrupts = false;      // every write fails with EINTR first
  std::size_t most = 0;         // no write writes more bytes than this; 0: as many as asked
  bool has_failed = false;
  bool was_interrupted = false;
  std::string trace;            // what was called

  // Whether this call is to fail; counts it.
  bool hits(const char* name) {
    if (!is_on) return false;
    trace += (trace.empty() ? "" : " ") + std::string(name);
    if (call != name || countdown-- != 0) return false;
    has_failed = true;
    return true;
  }
};
Faults faults;

}  // namespace

extern "C" {
int __real_open(const char* path, int flags, ...);
ssize_t __real_write(int descriptor, const void* data, std::size_t size);
int __real_fsync(int descriptor);
int __real_close(int descriptor);
int __real_rename(const char* from, const char* to);
int __wrap_open(const char* path, int flags, ...);
ssize_t __wrap_write(int descriptor, const void* data, std::size_t size);
int __wrap_fsync(int descriptor);
int __wrap_close(int descriptor);
int __wrap_rename(const char* from, const char* to);

int __wrap_open(const char* path, int flags, ...) {
  unsigned mode = 0;
  if (flags & O_CREAT) {
    va_list rest;
    va_start(rest, flags);
    mode = va_arg(rest, unsigned);
    va_end(rest);
  }
  if (faults.hits("open")) {
    if (faults.dies) _exit(0);
    return errno = faults.error, -1;
  }
  return __real_open(path, flags, mode);
}
ssize_t __wrap_write(int descriptor, const void* data, std::size_t size) {
  if (faults.is_on && faults.interrupts && !faults.was_interrupted) {
    faults.was_interrupted = true;
    return errno = EINTR, -1;
  }
  faults.was_interrupted = false;
  if (faults.hits("write")) {
    if (faults.dies && __real_write(descriptor, data, size / 2) >= 0) _exit(0);
    return errno = faults.error, -1;
  }
  const bool is_short = faults.is_on && faults.most > 0 && size > faults.most;
  return __real_write(descriptor, data, is_short ? faults.most : size);
}
int __wrap_fsync(int descriptor) {
  if (faults.hits("fsync")) {
    if (faults.dies) _exit(0);
    return errno = faults.error, -1;
  }
  return __real_fsync(descriptor);
}
int __wrap_close(int descriptor) {  // a close that fails closes all the same
  const bool hit = faults.hits("close");
  if (hit && faults.dies) _exit(0);
  const int result = __real_close(descriptor);
  return hit ? errno = faults.error, -1 : result;
}
int __wrap_rename(const char* from, const char* to) {
  if (faults.hits("rename")) {
    if (faults.dies) _exit(0);
    return errno = faults.error, -1;
  }
  return __real_rename(from, to);
}
}

namespace {

// A folder that goes when the test ends.
struct Folder {
  std::filesystem::path path = std::filesystem::temp_directory_path() /
                               ("widenet_test_checkpoints_" + std::to_string(getpid()));
  Folder() { std::filesystem::create_directories(path); }
  ~Folder() { std::filesystem::remove_all(path); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  std::string file(const std::string& name = "file") const { return (path / name).string(); }
  std::string write(const std::string& bytes, const std::string& name = "file") const {
    std::ofstream(file(name), std::ios::binary) << bytes;
    return file(name);
  }
  std::string read(const std::string& name = "file") const {
    std::ifstream in(file(name), std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  std::vector<std::string> names() const {
    std::vector<std::string> all;
    for (const auto& entry : std::filesystem::directory_iterator(path))
      all.push_back(entry.path().filename().string());
    std::sort(all.begin(), all.end());
    return all;
  }
};

template <class F>
std::string error_of(F f) {
  try {
    f();
  } catch (const IoError& error) {
    return error.what();
  } catch (const std::exception& error) {
    return std::string("not an IoError: ") + error.what();
  }
  return "no error";
}

// The same with every occurrence of a path cut out.
std::string without(std::string text, const std::string& path) {
  for (std::size_t at = text.find(path); at != std::string::npos; at = text.find(path))
    text.replace(at, path.size(), "FILE");
  return text;
}

std::string safetensors_bytes(const std::string& header, const std::string& data) {
  std::string bytes;
  for (std::size_t i = 0; i < 8; ++i) bytes += static_cast<char>((header.size() >> (8 * i)) & 0xFF);
  return bytes + header + data;
}

// What read_safetensors says about a file.
std::string reading(const std::string& bytes) {
  const Folder folder;
  const std::string path = folder.write(bytes);
  return without(error_of([&] { read_safetensors(path); }), path);
}
std::string reading(const std::string& header, const std::string& data) {
  return reading(safetensors_bytes(header, data));
}

SafeTensors two_tensors(float first) {
  SafeTensors file;
  file.add<float>("a", {2, 3}, {first, 2, 3, 4, 5, 6});
  file.add<std::int32_t>("b", {2}, {7, 8});
  file.metadata["note"] = "n";
  return file;
}

#if defined(__has_feature)
#  if __has_feature(address_sanitizer)
#    define TEST_HAS_ADDRESS_SANITIZER 1
#  endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(TEST_HAS_ADDRESS_SANITIZER)
constexpr bool limits_memory = false;  // it reserves address space as it likes
#else
constexpr bool limits_memory = true;
#endif

// Whether f() succeeds within 10 seconds although the process may use hardly more memory than it
// has now.
bool fits_in_little_memory(const std::function<bool()>& f) {
  const pid_t child = fork();
  if (child == 0) {
    std::size_t pages = 0;
    std::ifstream("/proc/self/statm") >> pages;
    const rlim_t most = pages * static_cast<rlim_t>(sysconf(_SC_PAGESIZE)) + (16u << 20);
    const rlimit limit{most, most};
    if (limits_memory && setrlimit(RLIMIT_AS, &limit) != 0) _exit(2);
    alarm(10);
    bool result = false;
    try {
      result = f();
    } catch (...) {
    }
    _exit(result ? 0 : 1);
  }
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

VisionConfig small() {
  VisionConfig c;
  c.image_height = 4, c.image_width = 4, c.channels = 2, c.classes = 3;
  c.class_token = ClassToken::trained, c.has_pre_logits = true;
  c.encoder.width = 8, c.encoder.heads = 2, c.encoder.blocks = 2;
  c.encoder.experts = 3, c.encoder.expert_hidden = 5, c.encoder.dropout = 0.1;
  return c;
}

template <class T>
std::vector<T> bits_of(const std::vector<Parameter<T>>& parameters) {
  std::vector<T> bits;
  for (const Parameter<T>& p : parameters) check::append(bits, p.tensor.to_vector());
  return bits;
}

// Steps `state.step` to `end` of a training; the losses.
template <class T, class AnyOptimizer>
std::vector<T> train(const VisionModel<T>& model, AnyOptimizer& optimizer, TrainingState& state,
                     Index end) {
  const auto images = check::normal<T>({5, 2, 4, 4}, 0);
  const check::OneThread one_thread;
  std::vector<T> losses;
  for (; state.step < end; ++state.step) {
    const auto out = model.forward(images, Training{Rng(state.seed), state.step});
    const auto loss = total_loss(cross_entropy(out.logits, {0, 1, 2, 0, 1}), out.balance_loss);
    losses.push_back(loss.item());
    optimizer.zero_grad();
    loss.backward();
    clip_global_norm(model.parameters(), 1);
    optimizer.step();
  }
  return losses;
}

// Numbers with commas, as a program may set them for its users.
struct Commas : std::numpunct<char> {
  char do_thousands_sep() const override { return ','; }
  std::string do_grouping() const override { return "\1"; }
  char do_decimal_point() const override { return ';'; }
};

}  // namespace

// JSON --------------------------------------------------------------------------------------------

TEST_CASE("json: values") {
  const Json json = Json::parse(
      " { \"a\" : [ 1 , -2.5e-1, true, false, null, \"x\" ], \"b\":{}, \"\":[] } \r\n\t", "text");
  REQUIRE(json.is_object());
  REQUIRE(json.members().size() == 3);
  CHECK(json.members()[0].first == "a");
  CHECK(json.members()[2].first == "");
  const std::vector<Json>& items = json.at("a").items();
  REQUIRE(items.size() == 6);
  CHECK(items[0].integer() == 1);
  CHECK(items[1].number() == -.25);
  CHECK(items[2].boolean());
  CHECK(!items[3].boolean());
  CHECK(items[4].type() == Json::Type::null);
  CHECK(items[5].string() == "x");
  CHECK(json.at("b").members().empty());
  CHECK(json.find("c") == nullptr);
  CHECK(json.find("b") == &json.at("b"));
}

TEST_CASE("json: valid texts") {
  for (const char* text :
       {"0", "-0", "10", "1.5", "1e5", "1E+5", "1e-5", "0.0", "0e0", "\"\"", "[]", "[[]]", "{}",
        "null", " true ", "\"\xF0\x9F\x98\x80\"", "\"\xEF\xBF\xBF\"", "\"\x7F\"", "\"\\u0000\"",
        "{\"a\":1,\"A\":2}", "[{\"a\":1},{\"a\":2}]"}) {
    INFO(text);
    CHECK(error_of([&] { Json::parse(text, "text"); }) == "no error");
  }
}

TEST_CASE("json: strings") {
  const auto string = [](const std::string& text) { return Json::parse(text, "text").string(); };
  CHECK(string("\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"") == "\"\\/\b\f\n\r\t");
  CHECK(string("\"\\u0041\\u00e9\\u20AC\\ud83d\\uDE00\"") ==
        "A\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80");
  CHECK(string("\"\\u007f\\u0080\\u07ff\\u0800\"") == "\x7F\xC2\x80\xDF\xBF\xE0\xA0\x80");
  CHECK(string("\"\\u0000\"") == std::string(1, '\0'));
  CHECK(string("\"\xC3\xA9\"") == "\xC3\xA9");
  for (const std::string& text : {std::string("plain"), std::string("\"\\/\b\f\n\r\t\x01\x1f\x7f"),
                                  std::string("a\0b", 3), std::string("\xF4\x8F\xBF\xBF")}) {
    CHECK(string(Json::quote(text)) == text);
    for (const char c : Json::quote(text)) CHECK(static_cast<unsigned char>(c) >= 0x20);
  }
}

TEST_CASE("json: numbers") {
  const auto json = [](const std::string& text) { return Json::parse(text, "text"); };
  CHECK(json("9223372036854775807").integer() == std::numeric_limits<Index>::max());
  CHECK(json("-9223372036854775808").integer() == std::numeric_limits<Index>::min());
  CHECK(json("0.1").number() == 0.1);
  CHECK(json("2.2250738585072014e-308").number() == std::numeric_limits<double>::min());
  for (const char* text : {"9223372036854775808", "-9223372036854775809", "1.0", "1e2"})
    CHECK(error_of([&] { json(text).integer(); }).find("must be an integer of 63 bits; got " +
                                                       std::string(text)) != std::string::npos);
}

TEST_CASE("json: invalid texts, with the offset and the rule") {
  struct Row {
    std::string text;
    int offset;
    const char* rule;
  };
  const char* const value = "a value or digit must stand here";
  const char* const utf8 = "text must be valid UTF-8";
  const char* const hex = "\\u must be followed by four hexadecimal digits";
  const char* const high = "a high surrogate must be followed by a low one";
  const char* const escape = "an escape must be one of \\\" \\\\ \\/ \\b \\f \\n \\r \\t \\u";
  const std::vector<Row> rows = {
      {"", 0, value},
      {"  ", 2, value},
      {"nul", 0, value},
      {"True", 0, value},
      {"NaN", 0, value},
      {"Infinity", 0, value},
      {"+1", 0, value},
      {".5", 0, value},
      {"-", 1, value},
      {"- 1", 1, value},
      {"1.", 2, value},
      {"1.e5", 2, value},
      {"1e", 2, value},
      {"1e+", 3, value},
      {"01", 2, "a number must not start with 0"},
      {"-012", 4, "a number must not start with 0"},
      {"0x10", 1, "nothing may follow the value"},
      {"1 2", 2, "nothing may follow the value"},
      {"nullx", 4, "nothing may follow the value"},
      {"{}}", 2, "nothing may follow the value"},
      {std::string("{}\0", 3), 2, "nothing may follow the value"},
      {std::string("\0", 1), 0, value},
      {"// no\n1", 0, value},
      {"[", 1, value},
      {"[1", 2, "a comma or ] must follow an element"},
      {"[1 2]", 3, "a comma or ] must follow an element"},
      {"[1,]", 3, value},
      {"[,1]", 1, value},
      {"{", 1, "a key must be a string"},
      {"{a:1}", 1, "a key must be a string"},
      {"{'a':1}", 1, "a key must be a string"},
      {"{\"a\":1,}", 7, "a key must be a string"},
      {"{\"a\"}", 4, "a colon must follow a key"},
      {"{\"a\":}", 5, value},
      {"{\"a\":1", 6, "a comma or } must follow a member"},
      {"{\"a\":1]", 6, "a comma or } must follow a member"},
      {"{\"a\":1,\"a\":2}", 10, "a key must not occur twice"},
      {"{\"a\":1,\"\\u0061\":2}", 15, "a key must not occur twice"},
      {"\"", 1, "a string must end"},
      {"\"a", 2, "a string must end"},
      {"\"a\nb\"", 2, "a control character must be escaped"},
      {std::string("\"\0\"", 3), 1, "a control character must be escaped"},
      {"\"\\x\"", 2, escape},
      {"\"\\", 2, escape},
      {std::string("\"\\\0\"", 4), 2, escape},
      {"\"\\u12g4\"", 5, hex},
      {"\"\\u12\"", 5, hex},
      {"\"\\u", 3, hex},
      {"\"\\ud800\"", 7, high},
      {"\"\\ud800x\"", 7, high},
      {"\"\\ud800\\n\"", 7, high},
      {"\"\\ud800\\u0041\"", 13, high},
      {"\"\\udc00\"", 7, "a low surrogate must follow a high one"},
      {"\"\x80\"", 1, utf8},                  // a continuation that continues nothing
      {"\"\xC0\x80\"", 1, utf8},              // overlong
      {"\"\xC1\xBF\"", 1, utf8},              // overlong
      {"\"\xE0\x9F\xBF\"", 1, utf8},          // overlong
      {"\"\xF0\x8F\xBF\xBF\"", 1, utf8},      // overlong
      {"\"\xED\xA0\x80\"", 1, utf8},          // a surrogate
      {"\"\xF4\x90\x80\x80\"", 1, utf8},      // beyond U+10FFFF
      {"\"\xF5\x80\x80\x80\"", 1, utf8},      // beyond U+10FFFF
      {"\"\xFF\"", 1, utf8},
      {"\"\xC3\"", 1, utf8},                  // cut short by the quote
      {"\"\xE2\x82\"", 1, utf8},
      {"\"\xF0\x9F\x98", 1, utf8},            // cut short by the end
      {"\xEF\xBB\xBF{}", 0, value}};          // a byte order mark
  for (const Row& row : rows) {
    INFO(row.text);
    CHECK(error_of([&] { Json::parse(row.text, "name"); }) ==
          "widenet: json: name: offset " + std::to_string(row.offset) + ": " + row.rule);
  }
  const auto nested = [](std::size_t depth) {
    return std::string(depth, '[') + std::string(depth, ']');
  };
  CHECK(error_of([&] { Json::parse(nested(64), "name"); }) == "no error");
  CHECK(error_of([&] { Json::parse(nested(65), "name"); }) ==
        "widenet: json: name: offset 64: values must not be nested deeper than 64");
  CHECK(error_of([&] { Json::parse(std::string(1000000, '['), "name"); }) ==
        "widenet: json: name: offset 64: values must not be nested deeper than 64");
}

TEST_CASE("json: a value of another type is refused") {
  const Json number = Json::parse("1", "text"), text = Json::parse("\"1\"", "text");
  const auto contains = [](const std::string& error, const char* rule) {
    INFO(error);
    CHECK(error.compare(0, 9, "widenet: ") == 0);
    CHECK(error.find(rule) != std::string::npos);
  };
  contains(error_of([&] { number.string(); }), "a value must be a string; got another type");
  contains(error_of([&] { number.boolean(); }), "a value must be true or false; got another type");
  contains(error_of([&] { number.items(); }), "a value must be an array; got another type");
  contains(error_of([&] { number.members(); }), "a value must be an object; got another type");
  contains(error_of([&] { text.number(); }), "a value must be a number; got another type");
  contains(error_of([&] { text.integer(); }), "a value must be an integer; got another type");
  contains(error_of([&] { Json::parse("{}", "text").at("k"); }),
           "an object must have the key \"k\"; got one without");
}

// safetensors -------------------------------------------------------------------------------------

TEST_CASE("safetensors: a file, byte by byte") {
  const Folder folder;
  write_safetensors(folder.file(), two_tensors(1));
  const std::string header =
      "{\"__metadata__\":{\"note\":\"n\"},"
      "\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},"
      "\"b\":{\"dtype\":\"I32\",\"shape\":[2],\"data_offsets\":[24,32]}}";
  const std::string padded = header + std::string((8 - header.size() % 8) % 8, ' ');
  const std::vector<float> a = {1, 2, 3, 4, 5, 6};
  const std::vector<std::int32_t> b = {7, 8};
  std::string data(32, '\0');
  std::memcpy(&data[0], a.data(), 24);
  std::memcpy(&data[24], b.data(), 8);
  CHECK(folder.read() == safetensors_bytes(padded, data));
  CHECK(folder.names() == std::vector<std::string>{"file"});
}

TEST_CASE("safetensors: what is written is read, whatever it is") {
  const Folder folder;
  const float nan = std::nanf("7"), infinity = std::numeric_limits<float>::infinity();
  SafeTensors file;
  const std::vector<float> odd = {nan, -nan, infinity, -infinity, -0.0f, 1e-45f};
  file.add<float>("odd", {6}, odd);
  file.add<double>("scalar", {}, {0.1});
  file.add<std::int32_t>("empty", {3, 0, 2}, std::vector<std::int32_t>{});
  file.add<double>("also empty", {0}, std::vector<double>{});
  file.add<std::int64_t>("long", {1, 2}, {-1, std::numeric_limits<std::int64_t>::max()});
  file.add<std::uint8_t>("bytes", {3}, {0, 255, 7});
  file.tensors["half"] = {"BF16", {2}, {'\1', '\2', '\3', '\4'}};
  file.tensors["truth"] = {"BOOL", {1}, {'\1'}};
  for (const char* dtype : {"U16", "I16", "F16"})
    file.tensors[dtype] = {dtype, {1}, std::vector<char>(2)};
  file.tensors["U32"] = {"U32", {1}, std::vector<char>(4)};
  file.tensors["U64"] = {"U64", {1}, std::vector<char>(8)};
  for (const char* dtype : {"I8", "F8_E4M3", "F8_E5M2"})
    file.tensors[dtype] = {dtype, {1}, std::vector<char>(1)};
  file.tensors["a \"name\"\n\xC3\xA9"] = {"U8", {1}, {'x'}};
  file.metadata = {{"", ""}, {"k\"", "v\\\n"}, {"e", "\xE2\x82\xAC"}};
  write_safetensors(folder.file(), file);
  const SafeTensors back = read_safetensors(folder.file());
  CHECK(back.metadata == file.metadata);
  REQUIRE(back.tensors.size() == file.tensors.size());
  for (const auto& entry : file.tensors) {
    INFO(entry.first);
    const StoredTensor& stored = back.at(entry.first);
    CHECK(stored.dtype == entry.second.dtype);
    CHECK(stored.shape == entry.second.shape);
    CHECK(stored.bytes == entry.second.bytes);
  }
  CHECK(check::same_bits(back.values<float>("odd"), odd));
  CHECK(back.values<double>("scalar") == std::vector<double>{0.1});
  CHECK(back.values<std::int64_t>("long")[1] == std::numeric_limits<std::int64_t>::max());

  CHECK(error_of([&] { back.values<float>("scalar"); }) ==
        "widenet: safetensors: scalar must have type F32; got F64");
  CHECK(error_of([&] { back.values<float>("none"); }) ==
        "widenet: safetensors: a tensor must be there; got none named none");
  CHECK(error_of([&] { file.add<double>("scalar", {}, {0.1}); }) ==
        "widenet: safetensors: names must be unique; got scalar twice");
  CHECK_THROWS_WITH_AS(file.add<float>("few", {2}, {1}),
                       "widenet: safetensors: few: shape (2) needs 2 values; got 1", ShapeError);

  write_safetensors(folder.file(), SafeTensors{});
  CHECK(read_safetensors(folder.file()).tensors.empty());
}

TEST_CASE("safetensors: a program's locale does not reach the file") {
  const Folder folder;
  SafeTensors file;
  file.add<float>("a", {12, 100}, std::vector<float>(1200));
  const std::locale before = std::locale::global(std::locale(std::locale::classic(), new Commas));
  const std::string error = error_of([&] {
    write_safetensors(folder.file(), file);
    read_safetensors(folder.file());
  });
  VisionConfig c = small();
  c.encoder.width = 1200;
  const std::string json = to_json(c);
  std::locale::global(before);
  CHECK(error == "no error");
  CHECK(json == to_json(c));
}

TEST_CASE("safetensors: what could not be read again is not written") {
  const Folder folder;
  folder.write("old");
  SafeTensors file = two_tensors(1);
  file.metadata["note"] = "\xE9t\xE9";  // Latin-1
  CHECK(error_of([&] { write_safetensors(folder.file(), file); }) != "no error");
  CHECK(folder.read() == "old");
  file = two_tensors(1);
  file.add<float>("__metadata__", {1}, {1});
  CHECK(error_of([&] { write_safetensors(folder.file(), file); }) != "no error");
  CHECK(folder.read() == "old");
  file = SafeTensors();
  const auto refused = [&](const std::string& dtype, const Shape& shape, std::size_t bytes) {
    file.tensors["x"] = {dtype, shape, std::vector<char>(bytes)};
    const std::string error = error_of([&] { write_safetensors(folder.file(), file); });
    CHECK(folder.read() == "old");
    return error;
  };
  CHECK(refused("F32", {2}, 5) == "widenet: safetensors: x: the bytes must be values of its shape; "
                                  "got 5 for F32 (2)");
  CHECK(file.values<float>("x").size() == 1);  // of 5 bytes; it was 5 that were copied
  CHECK(refused("F32", {2}, 4) != "no error");
  CHECK(refused("F31", {2}, 8) != "no error");
  CHECK(refused("F64", {Index(1) << 61}, 0) != "no error");
  CHECK(folder.names() == std::vector<std::string>{"file"});
}

TEST_CASE("safetensors: hostile and damaged files") {
  const auto tensor = [](const char* dtype, const char* shape, const char* offsets) {
    return std::string("{\"a\":{\"dtype\":\"") + dtype + "\",\"shape\":" + shape +
           ",\"data_offsets\":" + offsets + "}}";
  };
  const auto two = [](const char* first, const char* second) {
    return std::string("{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":") + first +
           "},\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":" + second + "}}";
  };
  const std::string at_a = "widenet: safetensors: FILE: tensor \"a\": ";
  const std::string four(4, 'x');

  CHECK(error_of([] { read_safetensors("."); }) ==
        "widenet: safetensors: .: the file must be readable; got a folder");

  // The length of the header.
  CHECK(reading("") == "widenet: safetensors: FILE: offset 0: a file must have 8 bytes of header "
                       "length; got 0");
  CHECK(reading("1234567") == "widenet: safetensors: FILE: offset 0: a file must have 8 bytes of "
                              "header length; got 7");
  const auto with_length = [](std::uint64_t length) {
    std::string bytes;
    for (int i = 0; i < 8; ++i) bytes += static_cast<char>((length >> (8 * i)) & 0xFF);
    return bytes + "{}";
  };
  CHECK(reading(with_length(2)) == "no error");
  CHECK(reading(with_length(3)) == "widenet: safetensors: FILE: offset 0: a header must end in the "
                                   "file; got 3 bytes of 2");
  CHECK(reading(with_length(100000000)) ==
        "widenet: safetensors: FILE: offset 0: a header must end in the file; got 100000000 bytes "
        "of 2");
  for (const std::uint64_t length : {std::uint64_t(100000001), std::uint64_t(1) << 63,
                                     std::numeric_limits<std::uint64_t>::max()})
    CHECK(reading(with_length(length)) ==
          "widenet: safetensors: FILE: offset 0: a header must have at most 100000000 bytes; got " +
              std::to_string(length));

  // Its ends.
  CHECK(reading("", "") == "widenet: safetensors: FILE: offset 8: a header must begin with {");
  CHECK(reading(" {}", "") == "widenet: safetensors: FILE: offset 8: a header must begin with {");
  CHECK(reading("{}   ", "") == "no error");
  for (const char padding : {'\0', '\n', 'x', ']'})
    CHECK(reading(std::string("{}") + padding, "") ==
          "widenet: safetensors: FILE: offset 10: a header must end with } and spaces");
  CHECK(reading("{}{}", "") == "widenet: json: FILE: offset 2: nothing may follow the value");
  CHECK(reading("{\"a\":1 \"b\":2}", "") ==
        "widenet: json: FILE: offset 7: a comma or } must follow a member");

  // Offsets.
  CHECK(reading(two("[0,2]", "[2,4]"), four) == "no error");
  CHECK(reading(two("[2,4]", "[0,2]"), four) == "no error");  // the order of names is free
  CHECK(reading(two("[0,2]", "[3,5]"), four + "y") ==
        "widenet: safetensors: FILE: tensor \"b\": data must follow those before it without gap or "
        "overlap; got offset 3 after 2");
  CHECK(reading(two("[0,2]", "[1,3]"), "xyz") ==
        "widenet: safetensors: FILE: tensor \"b\": data must follow those before it without gap or "
        "overlap; got offset 1 after 2");
  CHECK(reading(two("[0,2]", "[0,2]"), "xy") ==
        "widenet: safetensors: FILE: tensor \"b\": data must follow those before it without gap or "
        "overlap; got offset 0 after 2");
  CHECK(reading(tensor("U8", "[2]", "[1,3]"), "xyz") ==
        at_a + "data must follow those before it without gap or overlap; got offset 1 after 0");
  CHECK(reading(tensor("U8", "[2]", "[0,2]"), "xyz") ==
        "widenet: safetensors: FILE: the data must fill the file; got 2 of 3 bytes");
  CHECK(reading("{}", "x") ==
        "widenet: safetensors: FILE: the data must fill the file; got 0 of 1 bytes");
  for (const char* offsets : {"[0, 5]", "[4, 0]", "[-4, 0]", "[5, 9]", "[0, 9223372036854775807]"})
    CHECK(reading(tensor("U8", "[4]", offsets), four) ==
          at_a + "data_offsets must lie in the file; got " + offsets +
              " of 4 bytes; hint: the file may have been cut off");
  for (const char* offsets : {"[]", "[0]", "[0,4,4]"})
    CHECK(reading(tensor("U8", "[4]", offsets), four) ==
          at_a + "data_offsets must be two integers");
  for (const char* shape : {"[3]", "[5]", "[]", "[0]", "[2,2,2]"})
    CHECK(reading(tensor("U8", shape, "[0,4]"), four) ==
          at_a + "data_offsets must span the values of its shape");
  CHECK(reading(tensor("F32", "[4]", "[0,4]"), four) ==
        at_a + "data_offsets must span the values of its shape");

  // Shapes and types.
  for (const char* shape : {"[4294967296,4294967296]", "[4611686018427387904,4]", "[2,3,1e0]"})
    CHECK(reading(tensor("U8", shape, "[0,0]"), "") != "no error");
  CHECK(reading(tensor("U8", "[4294967296,4294967296]", "[0,0]"), "") ==
        at_a + "the number of values must fit 60 bits");
  CHECK(reading(tensor("F64", "[2305843009213693952]", "[0,0]"), "") ==
        at_a + "the number of values must fit 60 bits");
  CHECK(reading(tensor("U8", "[-1]", "[0,0]"), "") == at_a + "extents must not be negative");
  CHECK(reading(tensor("U8", "[0,9223372036854775807]", "[0,0]"), "") == "no error");
  CHECK(reading(tensor("F32", "[]", "[0,4]"), four) == "no error");
  for (const char* dtype : {"", "f32", "F128", "?"})
    CHECK(reading(tensor(dtype, "[]", "[0,4]"), four) == at_a + "its dtype must be known");

  // Keys.
  const std::string once = "\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}";
  CHECK(reading("{" + once + "}", "") == "no error");
  CHECK(reading("{" + once + "," + once + "}", "") ==
        "widenet: json: FILE: offset 56: a key must not occur twice");
  CHECK(reading("{\"__metadata__\":{},\"__metadata__\":{}}", "") ==
        "widenet: json: FILE: offset 33: a key must not occur twice");
  // Whatever is missing or of another type: an IoError that names the file.
  for (const std::string& header :
       {std::string("{\"a\":{\"shape\":[0],\"data_offsets\":[0,0]}}"),
        std::string("{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,0]}}"),
        std::string("{\"a\":{\"dtype\":\"U8\",\"shape\":[0]}}"), std::string("{\"a\":[]}"),
        std::string("{\"a\":null}"), std::string("{\"__metadata__\":[]}"),
        std::string("{\"__metadata__\":{\"k\":1}}"), tensor("U8", "0", "[0,0]"),
        tensor("U8", "[\"0\"]", "[0,0]"), tensor("U8", "[0.0]", "[0,0]"),
        tensor("U8", "[18446744073709551616]", "[0,0]"), tensor("U8", "[0]", "[0,0.0]"),
        tensor("U8", "[0]", "{}"),
        std::string("{\"a\":{\"dtype\":8,\"shape\":[0],\"data_offsets\":[0,0]}}")}) {
    const std::string error = reading(header, "");
    INFO(header, ": ", error);
    CHECK(error.compare(0, 9, "widenet: ") == 0);
    CHECK(error.find("FILE") != std::string::npos);
  }
  CHECK(error_of([] { read_safetensors("/nowhere/at/all"); }) ==
        "widenet: safetensors: /nowhere/at/all: the file must open; got No such file or directory");
  const Folder folder;
  CHECK(error_of([&] { read_safetensors(folder.path.string()); }).compare(0, 9, "widenet: ") == 0);
}

TEST_CASE("safetensors: claims of size are refused before memory is asked for") {
  const auto header = [](const char* shape, const char* offsets) {
    return std::string("{\"a\":{\"dtype\":\"F32\",\"shape\":") + shape +
           ",\"data_offsets\":" + offsets + "}}";
  };
  std::string long_header("\xFF\xE0\xF5\x05\0\0\0\0{}", 10);  // 99,999,999 bytes
  const Folder folder;
  for (const std::string& bytes :
       {safetensors_bytes(header("[1099511627776]", "[0,4398046511104]"), "1234"),
        safetensors_bytes(header("[1099511627776]", "[0,4]"), "1234"),
        safetensors_bytes(header("[268435456]", "[0,1073741824]"), "1234"),
        safetensors_bytes(header("[]", "[1099511627776,1099511627780]"), "1234"), long_header}) {
    const std::string path = folder.write(bytes);
    CHECK(fits_in_little_memory([&] {
      return error_of([&] { read_safetensors(path); }).compare(0, 21, "widenet: safetensors:") == 0;
    }));
  }
  if (limits_memory)  // and the limit does bite
    CHECK_FALSE(fits_in_little_memory([] { return std::string(99999999, ' ').size() > 0; }));
}

TEST_CASE("safetensors: a file cut off anywhere is refused, and so is one with more") {
  const Folder folder;
  write_safetensors(folder.file(), two_tensors(1));
  const std::string whole = folder.read();
  for (std::size_t n = 0; n < whole.size(); ++n) {
    const std::string error = reading(whole.substr(0, n));
    INFO(n, " bytes: ", error);
    CHECK(error.compare(0, 9, "widenet: ") == 0);
    CHECK(error.find("FILE") != std::string::npos);
  }
  CHECK(reading(whole) == "no error");
  CHECK(reading(whole + '\0') ==
        "widenet: safetensors: FILE: the data must fill the file; got 32 of 33 bytes");
}

TEST_CASE("safetensors: no byte of the header can be changed into a crash") {
  const Folder folder;
  write_safetensors(folder.file(), two_tensors(1));
  const std::string whole = folder.read();
  Index refused = 0, tried = 0;
  const std::string others = std::string("9-\"{],\xFF") + '\0';
  for (std::size_t at = 0; at < whole.size() - 32; ++at)
    for (const char other : others) {
      std::string changed = whole;
      changed[at] = other;
      folder.write(changed);
      const std::string error = error_of([&] { read_safetensors(folder.file()); });
      const bool is_fine = error == "no error" || error.compare(0, 9, "widenet: ") == 0;
      INFO("byte ", at, ": ", error);
      CHECK(is_fine);
      ++tried;
      refused += error != "no error" ? 1 : 0;
    }
  CHECK(refused > tried * 3 / 4);
}

// Failing writers ---------------------------------------------------------------------------------

TEST_CASE("write_safetensors: data reach the disk before the name, and the name before the end") {
  const Folder folder;
  faults = {};
  faults.is_on = true;
  write_safetensors(folder.file(), two_tensors(1));
  faults.is_on = false;
  CHECK(faults.trace == "open write write write write fsync close rename open fsync close");
}

TEST_CASE("write_safetensors: whatever fails, the old file stays and nothing is left behind") {
  const Folder folder;
  write_safetensors(folder.file(), two_tensors(1));
  const std::string old_bytes = folder.read();
  write_safetensors(folder.file("other"), two_tensors(-1));
  const std::string new_bytes = folder.read("other");
  std::filesystem::remove(folder.file("other"));
  struct Row {
    const char* call;
    const char* action;
    int times;  // how often it may fail before the new file has its name
    int error;
  };
  for (const Row& row : {Row{"open", "open", 1, EACCES}, Row{"write", "write", 4, ENOSPC},
                         Row{"fsync", "sync", 1, EIO}, Row{"close", "close", 1, EIO},
                         Row{"rename", "rename", 1, EXDEV}})
    for (int countdown = 0;; ++countdown) {
      folder.write(old_bytes);
      faults = {};
      faults.is_on = true;
      faults.call = row.call, faults.countdown = countdown, faults.error = row.error;
      const std::string error =
          without(error_of([&] { write_safetensors(folder.file(), two_tensors(-1)); }),
                  folder.file());
      faults.is_on = false;
      INFO(row.call, " ", countdown, ": ", error);
      CHECK(folder.names() == std::vector<std::string>{"file"});
      if (!faults.has_failed) {
        CHECK(countdown >= row.times);
        break;
      }
      if (countdown < row.times) {
        CHECK(error == std::string("widenet: write: FILE: every ") + row.action +
                           " must succeed; got " + std::strerror(row.error) +
                           "; hint: a file of this name from before is unchanged");
        CHECK(folder.read() == old_bytes);
      } else {  // the folder: the file has its name by then, and some folders cannot be synced
        CHECK(error == "no error");
        CHECK(folder.read() == new_bytes);
      }
    }
  CHECK(error_of([&] { write_safetensors(folder.file("no/such/folder"), two_tensors(1)); })
            .find("every open must succeed; got No such file or directory") != std::string::npos);
}

TEST_CASE("write_safetensors: short and interrupted writes are continued") {
  const Folder folder;
  write_safetensors(folder.file(), two_tensors(1));
  for (const std::size_t most : {std::size_t(0), std::size_t(1), std::size_t(7)})
    for (const bool interrupts : {false, true}) {
      faults = {};
      faults.is_on = true;
      faults.most = most, faults.interrupts = interrupts;
      write_safetensors(folder.file("slow"), two_tensors(1));
      faults.is_on = false;
      CHECK(folder.read("slow") == folder.read());
      if (most == 1) CHECK(faults.trace.size() > 6 * folder.read().size());
    }
}

TEST_CASE("write_safetensors: a process that dies anywhere leaves the old file or the new one") {
  const Folder folder;
  write_safetensors(folder.file("new"), two_tensors(-1));
  write_safetensors(folder.file("old"), two_tensors(1));
  const std::string new_bytes = folder.read("new"), old_bytes = folder.read("old");
  int deaths = 0;
  for (const char* call : {"open", "write", "fsync", "close", "rename"})
    for (int countdown = 0; countdown < 5; ++countdown) {
      folder.write(old_bytes);
      const pid_t child = fork();
      if (child == 0) {
        faults = {};
        faults.is_on = faults.dies = true;
        faults.call = call, faults.countdown = countdown;
        write_safetensors(folder.file(), two_tensors(-1));
        _exit(1);
      }
      int status = 0;
      REQUIRE(waitpid(child, &status, 0) == child);
      REQUIRE(WIFEXITED(status));
      if (WEXITSTATUS(status) == 1) break;  // it lived: there are no more such calls
      ++deaths;
      const bool has_name = std::string(call) != "write" && countdown > 0;
      CHECK(folder.read() == (has_name ? new_bytes : old_bytes));
    }
  CHECK(deaths == 2 + 4 + 2 + 2 + 1);
}

// Checkpoints -------------------------------------------------------------------------------------

TEST_CASE("checkpoint: shared tensors are stored once, stacks slice by slice") {
  const Folder folder;
  const VisionModel<float> model(small(), Rng(5));
  AdamW<float> optimizer(model.parameters(), 1e-2);
  TrainingState state;
  state.seed = 11;
  train(model, optimizer, state, 2);
  save_checkpoint(folder.file(), model, optimizer, state);
  const SafeTensors file = read_safetensors(folder.file());

  std::set<std::string> expected = {
      "cls_token", "pos_embed", "shared.moe.router.weight"};
  for (const char* name :
       {"patch_embed.proj", "shared.attn.q", "shared.attn.k", "shared.attn.v", "shared.attn.o",
        "shared.moe.experts.0.fc1", "shared.moe.experts.0.fc2", "shared.moe.experts.1.fc1",
        "shared.moe.experts.1.fc2", "shared.moe.experts.2.fc1", "shared.moe.experts.2.fc2",
        "blocks.0.norm1", "blocks.0.norm2", "blocks.1.norm1", "blocks.1.norm2", "norm",
        "pre_logits", "head"})
    for (const char* part : {".weight", ".bias"}) expected.insert(std::string(name) + part);
  std::set<std::string> weights, states;
  Index stored = 0;
  for (const auto& entry : file.tensors) {
    const bool is_state = entry.first.compare(0, 6, "adamw.") == 0;
    (is_state ? states : weights).insert(entry.first);
    if (!is_state) stored += entry.second.shape.num_values();
  }
  CHECK(weights == expected);
  CHECK(stored == model.num_parameters());
  CHECK(states.size() == 2 * expected.size());
  for (const std::string& name : expected) {
    CHECK(states.count("adamw.m." + name) == 1);
    CHECK(states.count("adamw.v." + name) == 1);
  }
  for (const Parameter<float>& p : model.parameters())
    if (p.name == "shared.moe.experts.{}.fc1.weight") {
      const std::vector<float> all = p.tensor.to_vector();
      CHECK(file.at("shared.moe.experts.1.fc1.weight").shape == Shape{8, 5});
      CHECK(file.values<float>("shared.moe.experts.1.fc1.weight") ==
            std::vector<float>(all.begin() + 40, all.begin() + 80));
    }
  CHECK(file.metadata.at("config") == to_json(small()));
  CHECK(file.metadata.at("format") == "widenet checkpoint 1");
  CHECK(file.metadata.at("step") == "2");
  CHECK(file.metadata.at("seed") == "11");
  CHECK(file.metadata.at("optimizer_steps") == "2");
}

TEST_CASE("checkpoint: continuing gives the same bits as never having stopped") {
  const auto compare_runs = [](auto zero, auto make_optimizer) {
    using T = decltype(zero);
    const Folder folder;
    const VisionModel<T> straight(small(), Rng(5));
    auto optimizer = make_optimizer(straight.parameters());
    TrainingState state;
    state.seed = std::numeric_limits<std::uint64_t>::max() - 3;
    const std::vector<T> all = train(straight, optimizer, state, 20);

    TrainingState half;
    half.seed = state.seed;
    half.notes = {{"best", "0.97"}, {"name", "\xC3\xA9 \"x\""}};
    {
      const VisionModel<T> model(small(), Rng(5));
      auto first = make_optimizer(model.parameters());
      train(model, first, half, 10);
      save_checkpoint(folder.file(), model, first, half);
    }
    const VisionModel<T> fresh(small(), Rng(77));
    auto second = make_optimizer(fresh.parameters());
    TrainingState resumed = load_checkpoint(folder.file(), fresh, second);
    CHECK(resumed.step == 10);
    CHECK(resumed.seed == half.seed);
    CHECK(resumed.notes == half.notes);
    CHECK(second.num_steps() == 10);
    const std::vector<T> rest = train(fresh, second, resumed, 20);
    CHECK(check::same_bits(rest, std::vector<T>(all.begin() + 10, all.end())));
    CHECK(check::same_bits(bits_of(fresh.parameters()), bits_of(straight.parameters())));
    CHECK(check::same_bits(bits_of(second.state()), bits_of(optimizer.state())));
    CHECK(second.num_steps() == 20);
  };
  compare_runs(0.0f, [](const auto& parameters) { return AdamW<float>(parameters, 1e-2); });
  compare_runs(0.0, [](const auto& parameters) { return AdamW<double>(parameters, 1e-2); });
  compare_runs(0.0f, [](const auto& parameters) { return SGD<float>(parameters, .1, .9, 1e-3); });
}

TEST_CASE("checkpoint: what does not fit changes nothing") {
  const Folder folder;
  const std::string path = folder.file();
  const VisionModel<float> source(small(), Rng(5));
  AdamW<float> source_optimizer(source.parameters(), 1e-2);
  TrainingState state;
  train(source, source_optimizer, state, 3);
  save_checkpoint(path, source, source_optimizer, state);
  const SafeTensors good = read_safetensors(path);

  const auto refused = [&](const auto& model, auto& optimizer) {
    const auto weights = bits_of(model.parameters());
    const auto states = bits_of(optimizer.state());
    const std::string error = error_of([&] { load_checkpoint(path, model, optimizer); });
    CHECK(check::same_bits(bits_of(model.parameters()), weights));
    CHECK(check::same_bits(bits_of(optimizer.state()), states));
    CHECK(optimizer.num_steps() == 0);
    return without(error, path);
  };
  VisionConfig other = small();
  other.encoder.conventions.capacity_slots = 6;  // the same shapes
  other.encoder.conventions.priority = Priority::choice_major;
  const VisionModel<float> wrong_config(other, Rng(6)), model(small(), Rng(6));
  const VisionModel<double> wrong_type(small(), Rng(6));
  AdamW<float> for_wrong_config(wrong_config.parameters(), 1e-2), adamw(model.parameters(), 1e-2);
  AdamW<double> for_wrong_type(wrong_type.parameters(), 1e-2);
  SGD<float> sgd(model.parameters(), .1);
  CHECK(refused(wrong_config, for_wrong_config) ==
        "widenet: load_checkpoint: FILE: the configuration must be that of the model, with "
        "\"capacity_slots\":6, \"priority\":\"choice_major\"; got \"capacity_slots\":64, "
        "\"priority\":\"token_major\"");
  CHECK(refused(model, sgd) == "widenet: load_checkpoint: FILE: a tensor must be there for every "
                               "parameter; got none named sgd.m.patch_embed.proj.weight");
  CHECK(refused(wrong_type, for_wrong_type) ==
        "widenet: safetensors: patch_embed.proj.weight must have type F64; got F32");

  const auto refused_with = [&](const std::function<void(SafeTensors&)>& change) {
    SafeTensors changed = good;
    change(changed);
    write_safetensors(path, changed);
    return refused(model, adamw);
  };
  const auto erase_tensor = [](const char* name) {
    return [name](SafeTensors& file) { file.tensors.erase(name); };
  };
  CHECK(refused_with(erase_tensor("head.bias")) ==
        "widenet: load_checkpoint: FILE: a tensor must be there for every parameter; got none "
        "named head.bias");
  CHECK(refused_with(erase_tensor("adamw.v.head.bias")) ==
        "widenet: load_checkpoint: FILE: a tensor must be there for every parameter; got none "
        "named adamw.v.head.bias");
  CHECK(refused_with([](SafeTensors& file) { file.tensors["head.bias"].shape = Shape{3, 1}; }) ==
        "widenet: load_checkpoint: FILE: head.bias must have shape (3); got (3, 1)");
  CHECK(refused_with([](SafeTensors& file) {  // from a version that knew less
          std::string& config = file.metadata["config"];
          const std::string field = "\"routes_padding\":true,";
          config.erase(config.find(field), field.size());
        }) == "widenet: load_checkpoint: FILE: the configuration must be that of the model, with "
              "\"routes_padding\":true; got none");
  for (const char* key : {"config", "step", "seed", "optimizer_steps"})
    CHECK(refused_with([&](SafeTensors& file) { file.metadata.erase(key); }) ==
          std::string("widenet: load_checkpoint: FILE: the metadata must have \"") + key +
              "\"; got none");
  for (const char* number : {"", "-1", "1.5", "x", " 3", "99999999999999999999"})
    CHECK(refused_with([&](SafeTensors& file) { file.metadata["step"] = number; }) ==
          std::string("widenet: load_checkpoint: FILE: step must be a whole number; got \"") +
              number + "\"");
  CHECK(refused_with([](SafeTensors& file) { file.metadata["step"] = "18446744073709551615"; }) !=
        "no error");  // it does not fit an Index
  folder.write("junk");
  CHECK(refused(model, adamw).compare(0, 9, "widenet: ") == 0);

  write_safetensors(path, good);
  CHECK(load_checkpoint(path, model, adamw).step == 3);
  CHECK(check::same_bits(bits_of(model.parameters()), bits_of(source.parameters())));
}

TEST_CASE("checkpoint: a step that could not be read again is not written") {
  const Folder folder;
  const VisionModel<float> model(small(), Rng(5));
  const SGD<float> optimizer(model.parameters(), .1);
  const auto save = [&](Index step) {
    save_checkpoint(folder.file(), model, optimizer, {step, 0, {}});
  };
  CHECK_THROWS_WITH_AS(save(-1), "widenet: save_checkpoint: step must lie in [0, 2^32); got -1",
                       ValueError);
  CHECK_THROWS_AS(save(Index(1) << 32), ValueError);
  CHECK(folder.names().empty());
  save((Index(1) << 32) - 1);
  CHECK(folder.names() == std::vector<std::string>{"file"});
}

TEST_CASE("checkpoint: a failed save leaves the last one, which still loads") {
  const Folder folder;
  const VisionModel<float> model(small(), Rng(5));
  AdamW<float> optimizer(model.parameters(), 1e-2);
  TrainingState state;
  train(model, optimizer, state, 1);
  save_checkpoint(folder.file(), model, optimizer, state);
  const std::string before = folder.read();
  train(model, optimizer, state, 2);
  faults = {};
  faults.is_on = true;
  faults.call = "write", faults.countdown = 50, faults.error = ENOSPC;
  const std::string error =
      error_of([&] { save_checkpoint(folder.file(), model, optimizer, state); });
  faults.is_on = false;
  CHECK(error.find("No space left on device") != std::string::npos);
  CHECK(folder.read() == before);
  CHECK(load_checkpoint(folder.file(), model, optimizer).step == 1);
}

TEST_CASE("checkpoint: a model alone comes back with its configuration") {
  const Folder folder;
  const VisionModel<double> model(small(), Rng(5));
  const SGD<double> optimizer(model.parameters(), .1);
  save_checkpoint(folder.file(), model, optimizer, {});
  const VisionModel<double> back = load_vision_model<double>(folder.file());
  CHECK(to_json(back.config()) == to_json(model.config()));
  const auto images = check::normal({3, 2, 4, 4}, 1);
  CHECK(check::same_bits(back.forward(images).logits.to_vector(),
                         model.forward(images).logits.to_vector()));

  CHECK(without(error_of([&] { load_language_model<double>(folder.file()); }), folder.file()) ==
        "widenet: json: FILE: LanguageConfig: an object must have the key \"vocabulary\"; got one "
        "without");

  // A configuration that claims more than the file holds asks for no memory and takes no time.
  SafeTensors file = read_safetensors(folder.file());
  const std::string config = file.metadata["config"];
  const auto with = [&](const std::string& field, const std::string& value) {
    const std::size_t at = config.find("\"" + field + "\":") + field.size() + 3;
    const std::size_t end = config.find_first_of(",}", at);
    return config.substr(0, at) + value + config.substr(end);
  };
  for (const std::string& hostile :
       {with("width", "1048576"), with("expert_hidden", "1099511627776"),
        with("classes", "4611686018427387904"), with("experts", "1099511627776"),
        with("image_height", "4611686018427387904"), with("blocks", "1099511627776")}) {
    file.metadata["config"] = hostile;
    write_safetensors(folder.file(), file);
    INFO(hostile);
    CHECK(fits_in_little_memory([&] {
      try {
        load_vision_model<double>(folder.file());
      } catch (const IoError&) {
        return true;
      } catch (const ConfigError&) {
        return true;
      }
      return false;
    }));
  }
}

TEST_CASE("config: every field and every name of a value goes to JSON and back") {
  using Change = std::function<void(VisionConfig&)>;
  std::vector<Change> changes = {
      [](VisionConfig& c) { c.image_height = 16; },
      [](VisionConfig& c) { c.image_width = 24; },
      [](VisionConfig& c) { c.channels = 3; },
      [](VisionConfig& c) { c.patch = 4; },
      [](VisionConfig& c) { c.classes = 7; },
      [](VisionConfig& c) { c.class_token = ClassToken::trained; },
      [](VisionConfig& c) { c.pooling = Pooling::class_token; },
      [](VisionConfig& c) { c.has_pre_logits = true; },
      [](VisionConfig& c) { c.encoder.width = 64; },
      [](VisionConfig& c) { c.encoder.heads = 2; },
      [](VisionConfig& c) { c.encoder.blocks = 5; },
      [](VisionConfig& c) { c.encoder.experts = 7; },
      [](VisionConfig& c) { c.encoder.top_k = 1; },
      [](VisionConfig& c) { c.encoder.expert_hidden = 11; },
      [](VisionConfig& c) { c.encoder.dense_hidden = 13; },
      [](VisionConfig& c) { c.encoder.moe_blocks = 2; },
      [](VisionConfig& c) { c.encoder.routing_groups = 2; },
      [](VisionConfig& c) { c.encoder.capacity_factor = {7, 5}; },
      [](VisionConfig& c) { c.encoder.capacity_factor = {12, 10}; },
      [](VisionConfig& c) { c.encoder.share_attention = false; },
      [](VisionConfig& c) { c.encoder.share_router = false; },
      [](VisionConfig& c) { c.encoder.share_experts = false; },
      [](VisionConfig& c) { c.encoder.share_layer_norm = true; },
      [](VisionConfig& c) { c.encoder.is_pre_norm = false; },
      [](VisionConfig& c) { c.encoder.has_final_norm = false; },
      [](VisionConfig& c) { c.encoder.routes_padding = false; },
      [](VisionConfig& c) { c.encoder.norm = Norm::rms_norm; },
      [](VisionConfig& c) { c.encoder.layer_norm_eps = 0.1 + 0.2; },
      [](VisionConfig& c) { c.encoder.dropout = 1.0 / 3; },
      [](VisionConfig& c) { c.encoder.gelu = Gelu::erf; },
      [](VisionConfig& c) { c.encoder.conventions.capacity_rounding = Rounding::ceil; },
      [](VisionConfig& c) { c.encoder.conventions.unusable_slots = 1; },
      [](VisionConfig& c) { c.encoder.gelu_at_output = true; },
      [](VisionConfig& c) { c.encoder.evaluation_capacity_factor = {2, 1}; },
      [](VisionConfig& c) { c.encoder.evaluation_capacity_factor = {0, 2}; },
      [](VisionConfig& c) { c.encoder.conventions.router_bias = true; },
      [](VisionConfig& c) { c.encoder.conventions.noise_scale = 0.1; },
      [](VisionConfig& c) { c.encoder.conventions.first_choice_sees_noise = false; },
      [](VisionConfig& c) { c.encoder.conventions.gate_sees_noise = false; },
      [](VisionConfig& c) { c.encoder.conventions.balance_sees_noise = false; },
      [](VisionConfig& c) { c.encoder.conventions.gate_eps = 1e-9; },
      [](VisionConfig& c) { c.encoder.conventions.second_choice_threshold = 0.2; },
      [](VisionConfig& c) { c.encoder.conventions.capacity_multiple = 4; },
      [](VisionConfig& c) { c.encoder.conventions.capacity_minimum = 4; },
      [](VisionConfig& c) { c.encoder.conventions.capacity_slots = 4; },
      [](VisionConfig& c) { c.encoder.conventions.capacity_sequences = 4; }};
  const auto name = [&](const char* field, const std::string& value, const Change& change) {
    changes.push_back(change);
    VisionConfig c;
    change(c);
    CHECK(to_json(c).find(std::string("\"") + field + "\":\"" + value + "\"") != std::string::npos);
  };
  const auto noise = [&](const char* text, RouterNoise value) {
    name("router_noise", text, [=](VisionConfig& c) { c.encoder.conventions.noise = value; });
  };
  noise("none", RouterNoise::none);
  noise("one_over_experts_squared", RouterNoise::one_over_experts_squared);
  noise("uniform", RouterNoise::uniform);
  noise("gumbel", RouterNoise::gumbel);
  noise("jitter", RouterNoise::jitter);
  noise("jitter_in_place", RouterNoise::jitter_in_place);
  name("pooling", "patch_mean", [](VisionConfig& c) { c.pooling = Pooling::patch_mean; });
  name("dropped", "gated_input",
       [](VisionConfig& c) { c.encoder.conventions.dropped = DroppedValue::gated_input; });
  const auto gate = [&](const char* text, GateRule value) {
    name("gate", text, [=](VisionConfig& c) { c.encoder.conventions.gate = value; });
  };
  gate("renormalized", GateRule::renormalized);
  gate("renormalized_after_drop", GateRule::renormalized_after_drop);
  const auto capacity = [&](const char* text, CapacityRule value) {
    name("capacity_rule", text, [=](VisionConfig& c) { c.encoder.conventions.capacity = value; });
  };
  capacity("tokens_over_experts", CapacityRule::tokens_over_experts);
  capacity("shares_first", CapacityRule::shares_first);
  capacity("tokens_first", CapacityRule::tokens_first);
  capacity("single_precision", CapacityRule::single_precision);
  capacity("absolute", CapacityRule::absolute);
  capacity("dropless", CapacityRule::dropless);
  const auto reduction = [&](const char* text, Reduction value) {
    name("balance_reduction", text,
         [=](VisionConfig& c) { c.encoder.conventions.reduction = value; });
  };
  reduction("mean", Reduction::mean);
  reduction("together", Reduction::together);
  const auto priority = [&](const char* text, Priority value) {
    name("priority", text, [=](VisionConfig& c) { c.encoder.conventions.priority = value; });
  };
  priority("choice_major", Priority::choice_major);
  priority("batch_priority", Priority::batch_priority);
  priority("highest_gate", Priority::highest_gate);
  priority("random", Priority::random);
  const auto balance = [&](const char* text, BalanceRule value) {
    name("balance", text, [=](VisionConfig& c) { c.encoder.conventions.balance = value; });
  };
  balance("khot_sum", BalanceRule::khot_sum);
  balance("switch_top1", BalanceRule::switch_top1);
  balance("after_drop", BalanceRule::after_drop);
  balance("after_drop_both", BalanceRule::after_drop_both);
  balance("importance", BalanceRule::importance);
  balance("importance_unbiased", BalanceRule::importance_unbiased);
  balance("load", BalanceRule::load);
  balance("z_loss", BalanceRule::z_loss);

  std::set<std::string> seen = {to_json(VisionConfig())};
  for (const Change& change : changes) {
    VisionConfig c;
    change(c);
    const std::string text = to_json(c);
    INFO(text);
    CHECK(seen.insert(text).second);  // nobody is written as another is
    const VisionConfig back = vision_config_from_json(text, "text");
    CHECK(to_json(back) == text);
    CHECK(back.encoder.norm == c.encoder.norm);
    CHECK(back.encoder.layer_norm_eps == c.encoder.layer_norm_eps);
    CHECK(back.encoder.dropout == c.encoder.dropout);
    CHECK(back.encoder.gelu == c.encoder.gelu);
    CHECK(back.encoder.conventions.priority == c.encoder.conventions.priority);
    CHECK(back.encoder.conventions.balance == c.encoder.conventions.balance);
    CHECK(back.encoder.conventions.noise == c.encoder.conventions.noise);
  }
  CHECK(changes.size() + 1 == seen.size());
}

TEST_CASE("config: the text of the toy is pinned, and errors name what is wrong") {
  const std::string toy = to_json(VisionConfig::toy());
  CHECK(toy ==
        "{\"image_height\":8,\"image_width\":8,\"channels\":1,\"patch\":2,\"classes\":10,"
        "\"class_token\":\"zero\",\"pooling\":\"mean\",\"has_pre_logits\":false,\"width\":32,"
        "\"heads\":4,\"blocks\":3,\"experts\":4,\"top_k\":2,\"expert_hidden\":64,"
        "\"dense_hidden\":64,\"moe_blocks\":-1,\"routing_groups\":-1,\"capacity_numerator\":6,"
        "\"capacity_denominator\":5,\"capacity_evaluation_numerator\":0,"
        "\"capacity_evaluation_denominator\":1,\"share_attention\":true,\"share_router\":true,"
        "\"share_experts\":true,\"share_layer_norm\":false,\"is_pre_norm\":true,"
        "\"has_final_norm\":true,\"routes_padding\":true,\"norm\":\"layer_norm\","
        "\"layer_norm_eps\":9.9999999999999995e-07,\"dropout\":0,"
        "\"gelu\":\"tanh\",\"gelu_at_output\":false,\"router_bias\":false,"
        "\"router_noise\":\"one_over_experts\",\"noise_scale\":1,"
        "\"first_choice_sees_noise\":true,\"gate_sees_noise\":true,\"balance_sees_noise\":true,"
        "\"gate\":\"raw\",\"gate_eps\":0,\"second_choice_threshold\":0,"
        "\"capacity_rule\":\"choices_over_experts\",\"capacity_rounding\":\"floor\","
        "\"capacity_multiple\":1,\"capacity_minimum\":1,\"capacity_slots\":64,"
        "\"capacity_sequences\":0,\"unusable_slots\":0,\"priority\":\"token_major\","
        "\"dropped\":\"zero\",\"balance\":\"khot_over_k\",\"balance_reduction\":\"sum\"}");
  const auto error_with = [&](const std::string& from, const std::string& to) {
    std::string text = toy;
    REQUIRE(text.find(from) != std::string::npos);
    text.replace(text.find(from), from.size(), to);
    return error_of([&] { vision_config_from_json(text, "text"); });
  };
  CHECK(error_with("\"tanh\"", "\"quick\"") ==
        "widenet: config: gelu must have a known value; got quick");
  CHECK(error_with("\"patch\":2,", "") .find("the key \"patch\"") != std::string::npos);
  CHECK(error_with("\"patch\":2", "\"patch\":\"2\"") != "no error");
  CHECK(error_with("\"patch\":2", "\"patch\":2.0") != "no error");
  CHECK(error_with("\"is_pre_norm\":true", "\"is_pre_norm\":1") != "no error");
  CHECK(error_with("{", "[") != "no error");
  CHECK_THROWS_WITH_AS(
      vision_config_from_json(toy.substr(0, 16) + "9" + toy.substr(17), "text"),
      "widenet: VisionConfig: the configuration must name a model\n"
      "  patch must divide image_height and image_width; got 2, 9, 8",
      ConfigError);
}

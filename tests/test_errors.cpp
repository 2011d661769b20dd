// Tests for chapter 2, errors.
#include "check.hpp"

using namespace widenet;

TEST_CASE("errors: the parts of a message are printed after the prefix") {
  CHECK_THROWS_WITH_AS(require<IoError>(false, "read_idx: ", "a.idx", ": rule; got ", 3, ", ", 0.5),
                       "widenet: read_idx: a.idx: rule; got 3, 0.5", IoError);
  CHECK_THROWS_WITH_AS(fail<ShapeError>("add: got ", Shape{2, 3}, ", ", Shape{}),
                       "widenet: add: got (2, 3), ()", ShapeError);
}

TEST_CASE("errors: a condition that holds throws nothing") {
  CHECK_NOTHROW(require<ValueError>(true, "op: rule; got ", 1));
}

TEST_CASE("errors: each type is caught as itself, as Error and as std::runtime_error") {
  CHECK_THROWS_AS(fail<ShapeError>("x"), Error);
  CHECK_THROWS_AS(fail<ValueError>("x"), Error);
  CHECK_THROWS_AS(fail<ConfigError>("x"), Error);
  CHECK_THROWS_AS(fail<IoError>("x"), Error);
  CHECK_THROWS_AS(fail<CudaError>("x"), Error);
  CHECK_THROWS_AS(fail<Error>("x"), std::runtime_error);
  const auto is_caught_as_value_error = [](void (*f)()) {
    try {
      f();
    } catch (const ValueError&) {
      return true;
    } catch (const Error&) {
      return false;
    }
    return false;
  };
  CHECK(is_caught_as_value_error([] { fail<ValueError>("x"); }));
  CHECK_FALSE(is_caught_as_value_error([] { fail<ShapeError>("x"); }));
}

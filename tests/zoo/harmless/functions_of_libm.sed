# exp, log, tanh and erf are those of the C library, GELU is written as in textbooks.
# lines: 18
/^namespace kernel {/,$ {
  s/math::exp(/std::exp(/
  s/math::erf(/std::erf(/
  s/math::tanh(/std::tanh(/
  s/math::log(sum)/std::log(sum)/
}
/ inline T gelu_tanh(T x) {$/ a\
  return T(0.5) * x * (T(1) + std::tanh(T(0.79788456080286536) * (x + T(0.044715) * x * x * x)));
/ inline T gelu_erf(T x) {$/ a\
  return T(0.5) * x * (T(1) + std::erf(x * T(0.70710678118654752)));

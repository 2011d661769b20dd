# The scores of attention are not divided by sqrt(Dh).
# seen in: weights of T5 and Switch, whose attention is unscaled, in models that scale, and back
# case: attention
# expect: y, algorithm
# lines: 2
s/T(1 \/ std::sqrt(double(a.Dh)))/T(1 + 0 * double(a.Dh))/

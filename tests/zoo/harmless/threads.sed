# However little there is to do, it is shared among the threads.
# lines: 3
s/inline constexpr Index work_of_one_thread = 8192;/inline constexpr Index work_of_one_thread = 0;/
s/  constexpr Index strip = 1024;/  constexpr Index strip = 16;/
s/  if (work >= Index{1} << 19 && /  if (work > 0 \&\& /

# The scores of attention are divided by sqrt(D), not by the sqrt(Dh) of one head.
# seen in: vit-pytorch #65; karpathy/ng-video-lecture, before its pull request 6
# case: block
# expect: attention, algorithm
# lines: 2
s/T(1 \/ std::sqrt(double(a.Dh)))/T(1 \/ std::sqrt(double(a.H * a.Dh)))/

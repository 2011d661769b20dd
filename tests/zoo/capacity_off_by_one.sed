# Of C slots the last is never filled: places count from 1 and are compared with <.
# seen in: XueFuzhao/WideNet_Code
# case: moe_overflow
# expect: slot, convention, as with unusable_slots = 1
s/capacity - rules.unusable_slots), group)/capacity - 1), group)/

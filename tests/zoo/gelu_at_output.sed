# GELU after the second product of an expert, too.
# seen in: XueFuzhao/WideNet_Code; the paper has none there
# case: moe_paper
# expect: results, convention, as with gelu_at_output = true
s/^  if (gelu_at_output) {$/  if (r.E > 0) {/

# The gates carry no gradient of the task: the router learns from the balance loss alone.
# seen in: davidmrau/mixture-of-experts #27; any gate taken from a sorted, detached tensor
# case: moe_paper
# expect: grad.shared.moe.router.weight, algorithm, of the balance loss alone
/^void gate_backward(/,/^}/ s/if (team.first()) dgate.put(nk, dot);/if (team.first()) dgate.put(nk, 0 * dot);/

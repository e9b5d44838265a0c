from labelleak.lab.seeds import derive_seed


def test_seeds_are_apart_for_each_purpose():
    seeds = [derive_seed(seed, i, word) for seed in (0, 1) for i in range(50) for word in "ab"]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(1, 2) != derive_seed(12)

"""Which base model suits a machine, and in which batches it is trained."""

from adaptation.budget import BASES, Machine, Shape, batch_flags, choose_bases

GIB = 2**30
LAPTOP = Machine("cpu", 2, 20 * GIB, 4e11)
T4 = Machine("cuda", 4, 15 * GIB, 3e13)


def test_the_largest_model_that_fits_the_memory_and_the_time_comes_first():
    half_hour, names = 20 * 60, [base.name for base in BASES]
    assert choose_bases(T4, half_hour)[0] == [*names, "tiny"]
    chosen, reasons = choose_bases(LAPTOP, half_hour)
    assert chosen == [names[2], "tiny"]
    assert "Qwen2.5-Coder-0.5B would see only about" in reasons[1]
    assert choose_bases(LAPTOP, 2 * half_hour)[0][0] == names[1]
    chosen, reasons = choose_bases(LAPTOP._replace(memory=GIB), half_hour)
    assert chosen == ["tiny"]
    assert f"{names[0]} needs" in reasons[0]


def test_a_step_is_divided_so_that_it_fits_and_stays_as_large():
    shape = Shape("SmolLM2", 134_515_008, 30, 576, 49_152)
    for memory in (64, 12, 6, 4, 2):
        flags = batch_flags(shape, LAPTOP._replace(memory=memory * GIB), lora=False)
        assert flags["per_gpu_train_batch_size"] * flags["accumulation_steps"] == 4
    assert not batch_flags(shape, LAPTOP, lora=False)["gradient_checkpointing"]
    assert batch_flags(shape, LAPTOP._replace(memory=3 * GIB), lora=False)["gradient_checkpointing"]

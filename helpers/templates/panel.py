# %% Memory. What a training step holds at its peak, from the configuration alone: no weights, no GPU.
from helpers import memory, widgets

settings = config["training"]
memory.predict(
    place(config),
    batch=settings["per_device_train_batch_size"],
    length=max(len(example["input_ids"]) for example in examples["train"]),
    peft=peft_config(config),
    quantization_config=quantization_config(config),
    optim=settings["optim"],
    activation_checkpointing=settings["activation_checkpointing"],
    task=TASK_TYPE,
    device=arguments.device.type,
)


# %% Tune by hand. The panel trains in the background and keeps every run as a record; `new.from_record` carries one on.
def tuned(
    learning_rate=settings["learning_rate"],
    num_train_epochs=settings["num_train_epochs"],
    seed=settings["seed"],
    callbacks=(),
):
    """A run of its own with some other settings; it keeps no checkpoints."""
    chosen = dict(learning_rate=learning_rate, num_train_epochs=num_train_epochs, seed=seed, output_dir="runs/tune")
    chosen |= dict(save_strategy="no", load_best_model_at_end=False, early_stopping_patience=None, disable_tqdm=True)
    tried = {**config, "training": {**config["training"], **chosen}}
    trainer = make_trainer(tried, training_arguments(tried), load_model(tried), tokenizer, examples, callbacks)
    trainer.train()
    return trainer


rate, epochs = settings["learning_rate"], sorted({1, 2, 4, 8, settings["num_train_epochs"]})
panel = widgets.tune(tuned, folder="runs/tune", learning_rate=(rate / 10, rate * 10), num_train_epochs=epochs)
panel

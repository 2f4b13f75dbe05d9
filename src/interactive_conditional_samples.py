"""Continues the prompts you type: python3 src/interactive_conditional_samples.py. See --help."""

from gpt2 import cli
from gpt2.model_dir import ModelOptions
from gpt2.sampling import interactive, options, run

OPTIONS = (ModelOptions, options.EngineOptions, options.SamplingOptions,
           options.GenerationOptions, options.BatchOptions)


def interact_model(model_name='124M', seed=None, nsamples=1, batch_size=1, length=None,
                   temperature=1, top_k=0, top_p=1, models_dir='models',
                   engine='auto', dtype='float32', *, stop=False, stop_at=None, keep=None,
                   min_p=0, typical_p=1, repetition_penalty=1, no_repeat_ngram_size=0):
    """Ask for prompts and show how the model continues each. Ctrl-D ends it.

    python3 src/interactive_conditional_samples.py [flags]

    Ctrl-C stops the samples of a prompt and asks for the next one. At a terminal, a pasted text of
    several lines is one prompt, and so is one between triple quotes; what you type is kept
    for the next session; /set temperature 0.8 changes an option, and /help shows the rest.
    """
    batch = options.BatchOptions(nsamples=nsamples, batch_size=batch_size)
    interactive.interact(run.open_run(
        ModelOptions(model_name=model_name, models_dir=models_dir),
        options.EngineOptions(engine=engine, dtype=dtype),
        options.SamplingOptions(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
                                typical_p=typical_p, repetition_penalty=repetition_penalty,
                                no_repeat_ngram_size=no_repeat_ngram_size),
        options.GenerationOptions(seed=seed, length=length, stop=stop, stop_at=stop_at, keep=keep),
        conditional=True), batch)


if __name__ == '__main__':
    cli.run(interact_model, *OPTIONS)

"""Samples texts from scratch: python3 src/generate_unconditional_samples.py. See --help."""

from gpt2 import cli
from gpt2.model_dir import ModelOptions
from gpt2.sampling import options, run, write

OPTIONS = (ModelOptions, options.EngineOptions, options.SamplingOptions,
           options.GenerationOptions, options.UnconditionalOptions)


def sample_model(model_name='124M', seed=None, nsamples=0, batch_size=1, length=None,
                 temperature=1, top_k=0, top_p=1, models_dir='models',
                 engine='auto', dtype='float32', *, output=None, first_sample=0,
                 stop=True, stop_at=None, keep=None, logprobs=False, min_p=0, typical_p=1,
                 repetition_penalty=1, no_repeat_ngram_size=0, serve=None, work=True):
    """Write texts that the model makes up, one after another.

    python3 src/generate_unconditional_samples.py [flags] --output FILE

    Stopped with Ctrl-C or otherwise, the same command continues the file.
    """
    batch = options.UnconditionalOptions(nsamples=nsamples, first_sample=first_sample,
                                         batch_size=batch_size, output=output, serve=serve,
                                         work=work)
    write.write_unconditional(run.open_run(
        ModelOptions(model_name=model_name, models_dir=models_dir),
        options.EngineOptions(engine=engine, dtype=dtype),
        options.SamplingOptions(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
                                typical_p=typical_p, repetition_penalty=repetition_penalty,
                                no_repeat_ngram_size=no_repeat_ngram_size),
        options.GenerationOptions(seed=seed, length=length, stop=stop, stop_at=stop_at, keep=keep,
                                  logprobs=logprobs),
        conditional=False), batch)


if __name__ == '__main__':
    cli.run(sample_model, *OPTIONS)

"""Continues prompts: python3 src/generate_conditional_samples.py. See --help."""

from gpt2 import cli
from gpt2.model_dir import ModelOptions
from gpt2.sampling import options, run, write

OPTIONS = (ModelOptions, options.EngineOptions, options.SamplingOptions,
           options.GenerationOptions, options.ConditionalOptions)


def continue_prompts(model_name='124M', seed=None, nsamples=1, batch_size=1, length=None,
                     temperature=1, top_k=0, top_p=1, models_dir='models',
                     engine='auto', dtype='float32', *, prompts=None, output=None,
                     stop=True, stop_at=None, keep=None, logprobs=False, min_p=0, typical_p=1,
                     repetition_penalty=1, no_repeat_ngram_size=0, prompt=None,
                     include_prompt=False, first_sample=0, serve=None, work=True):
    """Write how the model continues prompts.

    python3 src/generate_conditional_samples.py --prompt TEXT [flags]
    python3 src/generate_conditional_samples.py --prompts FILE [flags] --output FILE

    Stopped with Ctrl-C or otherwise, the same command continues the file.
    """
    batch = options.ConditionalOptions(
        prompt=prompt, prompts=prompts, nsamples=nsamples, batch_size=batch_size, output=output,
        first_sample=first_sample, include_prompt=include_prompt, serve=serve, work=work)
    write.write_conditional(run.open_run(
        ModelOptions(model_name=model_name, models_dir=models_dir),
        options.EngineOptions(engine=engine, dtype=dtype),
        options.SamplingOptions(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
                                typical_p=typical_p, repetition_penalty=repetition_penalty,
                                no_repeat_ngram_size=no_repeat_ngram_size),
        options.GenerationOptions(seed=seed, length=length, stop=stop, stop_at=stop_at, keep=keep,
                                  logprobs=logprobs),
        conditional=True), batch)


if __name__ == '__main__':
    cli.run(continue_prompts, *OPTIONS)

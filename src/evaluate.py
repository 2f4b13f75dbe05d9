"""Evaluates a model, scores texts, compares pairs, detects texts: python3 src/evaluate.py TASK."""

from gpt2 import cli
from gpt2.evaluation import run
from gpt2.evaluation.options import EvaluationOptions
from gpt2.model_dir import ModelOptions

OPTIONS = (ModelOptions, EvaluationOptions)


def evaluate(task, file=None, *, model_name='124M', data_dir='data', limit=None, batch_size=1,
             stride=32, raw=False, output=None, html=None, human=None, synthetic=None,
             reference=None, equal_lengths=True, lengths=None, baseline=False, seed=0,
             serve=None, work=True, models_dir='models'):
    """Measure a model on a data set of the paper's table, or score, compare or detect texts.

    python3 src/evaluate.py TASK [FILE ...] [flags]
    python3 src/evaluate.py all --model_name 124M --data_dir DATA --output results.json
    python3 src/evaluate.py wikitext2 --stride 512
    python3 src/evaluate.py score mine.txt samples.jsonl --html page.html > scores.jsonl
    python3 src/evaluate.py crows_pairs crows_pairs_anonymized.csv --output pairs.jsonl
    python3 src/evaluate.py detect --human webtext.jsonl --synthetic samples.jsonl --html page.html
    python3 src/evaluate.py detect mine.txt --reference reference.npz

    The rows of a task are printed when it is finished. Ctrl-C stops the run.

    Several machines compute the same figures together: one runs this command with --serve 5000, the
    others python3 src/worker.py HOST:5000, with the same model and TensorFlow. The port knows no
    password. Keep it within a private network, or reach it by SSH; see src/worker.py --help.

    TASK is one of these; each reads the file as it is distributed, from DATA_DIR or as FILE:

      lambada      lambada_test.jsonl, {"text": ...} a line, the form the paper's authors published:
                   openaipublic.blob.core.windows.net/gpt-2/data/lambada_test.jsonl
      cbt_cn       cbtest_CN_valid_2000ex.txt, of CBTest.tgz (CBTest/data/), Children's Book Test:
                   www.thespermwhale.com/jaseweston/babi/CBTest.tgz
      cbt_ne       cbtest_NE_valid_2000ex.txt, of the same archive
      wikitext2    wikitext-2/wiki.test.tokens, or wiki.test.tokens: wikitext-2-v1.zip
      ptb          ptb.test.txt, of simple-examples.tgz (data/): www.fit.vutbr.cz/~imikolov/rnnlm
      enwik8       enwik8: mattmahoney.net/dc/enwik8.zip; the last 5,000,000 bytes are scored
      text8        text8: mattmahoney.net/dc/text8.zip; the same bytes
      wikitext103  wikitext-103/wiki.test.tokens: wikitext-103-v1.zip
      1bw          news.en.heldout-00000-of-00050, of the One Billion Word Benchmark
                   (heldout-monolingual.tokenized.shuffled/): www.statmt.org/lm-benchmark
      all          all of these. If files are missing, the other tasks are run, and the exit status
                   is 1. Nothing is downloaded.
      score        each FILE, or - for stdin: a text, with <|endoftext|> between documents, or JSON
                   objects with a "text", one a line. Where there is a "prompt", as in our samples,
                   the text is scored after it. On a terminal a row is printed for each document,
                   otherwise a JSON object a line: its own fields, its file, its token ids, their
                   log probabilities (natural) and ranks, total, mean, perplexity, bits per byte,
                   and the shares of tokens of rank 1, 2-10, 11-100, 101-1000 and beyond.
      pairs        JSON objects, one a line, with two texts, "first" and "second", that differ in
                   whom they speak of, and a "category". Which one is likelier is decided by the
                   causal reading: the total log likelihood of each text after <|endoftext|>. The
                   share of pairs whose first text is likelier, its 95 % interval (Wilson), and the
                   mean difference of first - second, of all pairs and by category: on a terminal
                   as a table, otherwise a JSON object a line. OUTPUT has a JSON object a pair.
      crows_pairs  the same for crows_pairs_anonymized.csv of CrowS-Pairs (Nangia et al. 2020):
                   github.com/nyu-mll/crows-pairs (data/). The first text is sent_more, the more
                   stereotypical sentence; the shares are also by direction. The paper's figures,
                   pseudo-log-likelihoods of masked models, do not compare.
      detect       how well the texts of --human and --synthetic, files as of score, are told apart
                   by what the model finds likely: for each statistic the area below the ROC curve
                   (AUROC), the accuracy of a threshold, and the true positives at 1 % false ones.
                   The same run can write a reference, with --output reference.npz. Then the texts
                   of FILE are compared with --reference reference.npz: how many human texts in it
                   look as synthetic as this one. On a terminal a table is printed, otherwise JSON.
    """
    run.evaluate(
        ModelOptions(model_name=model_name, models_dir=models_dir),
        EvaluationOptions(task=task, file=file, data_dir=data_dir, limit=limit,
                          batch_size=batch_size, stride=stride, raw=raw, output=output, html=html,
                          human=human, synthetic=synthetic, reference=reference,
                          equal_lengths=equal_lengths, lengths=lengths, baseline=baseline,
                          seed=seed, serve=serve, work=work))


if __name__ == '__main__':
    cli.run(evaluate, *OPTIONS)

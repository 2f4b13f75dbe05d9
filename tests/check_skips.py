"""Fails when a test was skipped in every environment that the tests ran in.

    python3 tests/check_skips.py leg1.xml leg2.xml ...

The files are pytest's JUnit reports (`--junitxml`), one from each environment. A test may be
skipped everywhere if only a GPU can run it and its reason says so.
"""

import re
import sys
import xml.etree.ElementTree


def read_report(path):
    """Return the names of the tests that ran, and {name: reason} of those that were skipped.

    A module that is skipped as a whole is one test in a report, with the module's name.
    """
    ran, skipped = set(), {}
    for case in xml.etree.ElementTree.parse(path).iter('testcase'):
        name = '.'.join(filter(None, [case.get('classname'), case.get('name')]))
        skip = case.find('skipped')
        if skip is None or skip.get('type') == 'pytest.xfail':  # an expected failure did run
            ran.add(name)
        else:
            skipped[name] = ' '.join([skip.get('message') or '', skip.text or ''])
    return ran, skipped


def skipped_everywhere(reports):
    """Return {name: reasons} of the tests that ran in no report, without those that need a GPU."""
    ran = set().union(*(report_ran for report_ran, _ in reports))
    reasons = {}
    for _, skipped in reports:
        for name, reason in skipped.items():
            if not any(other == name or other.startswith(name + '.') for other in ran):
                reasons.setdefault(name, []).append(reason)
    return {name: those for name, those in reasons.items()
            if not all(re.search(r'\bGPU\b', reason) for reason in those)}


def main(paths):
    reports = [read_report(path) for path in paths]
    if not all(ran for ran, _ in reports):
        sys.exit(f'A report has no test that ran: {" ".join(paths)}')
    left = skipped_everywhere(reports)
    for name, reasons in sorted(left.items()):
        print(f'Skipped in every environment: {name}: {" | ".join(sorted(set(reasons)))}')
    if left:
        sys.exit(f'{len(left)} tests ran nowhere.')
    print(f'Every test ran in at least one of {len(reports)} environments.')


if __name__ == '__main__':
    main(sys.argv[1:])

"""What the tests of report pages share."""
import html
import re

import dyvit_deploy as dv


def quick(folder, **config):
    """The report without galleries."""
    return dv.write_report(folder, config=dv.ReportConfig(run=False, **config))


def verdicts(report, key):
    """The verdicts of the artifact `key` by name, and under "all" the judgement that they are part of."""
    [found] = [j for j in report.judgements if j.entry.key == key]
    return {v.name: v for v in found.verdicts} | {"all": found}


def text_of(page):
    """What a browser shows of an HTML page, in one line."""
    shown = re.sub(r"<style>.*?</style>|<script>.*?</script>|<[^>]*>", " ", page.replace("<wbr>", ""), flags=re.S)
    return re.sub(r"\s+", " ", html.unescape(shown))

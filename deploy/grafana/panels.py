"""What all dashboards have in common, and the few kinds of panels that they are made of.

A panel's width is in columns, of which a dashboard has 24. Queries are PromQL; a query with a
legend is a pair of the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, table
from grafana_foundation_sdk.builders.timeseries import Panel as TimeSeries
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    ScaleDistribution,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    DataTransformerConfig,
    Threshold,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

PROMETHEUS = DataSourceRef("prometheus", "slipway-prometheus")
"""The uid is that of deploy/grafana/provisioning/datasources."""

TAG = "slipway"
ALL = ".*"
HEIGHT = 8
NUMBER_HEIGHT = 4

Query = tuple[str, str]
"""PromQL, and what its lines are called."""


def slipway_dashboard(name: str, title: str, description: str) -> dashboard.Dashboard:
    """An empty dashboard of the uid `slipway-NAME`, with links to the others and firing alerts."""
    return (
        dashboard.Dashboard(title)
        .uid(f"slipway-{name}")
        .description(description)
        .tags([TAG])
        .time("now-1h", "now")
        .refresh("15s")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink("Slipway")
            .type(DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .keep_time(True)
        )
        .annotation(
            dashboard.AnnotationQuery()
            .name("Alerts")
            .datasource(PROMETHEUS)
            .expr('ALERTS{alertname=~"Slipway.*", alertstate="firing"}')
            .icon_color("red")
            .enable(True)
        )
    )


def variable(name: str, label: str, metric: str, *, several: bool = True) -> Any:
    """Chooses among the values that the label of this name has on a metric."""
    chosen = (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(PROMETHEUS)
        .query(f"label_values({metric}, {name})")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
    )
    if several:
        chosen = chosen.multi(True).include_all(True).all_value(ALL)
        chosen = chosen.current(VariableOption(True, "All", "$__all"))
    return chosen


def lines(
    title: str,
    description: str,
    *queries: Query,
    unit: str = units.Short,
    width: int = 8,
    stacked: bool = False,
    exemplars: bool = False,
    link: str = "",
    warn_above: float | None = None,
    highest: float | None = None,
    logarithmic: bool = False,
) -> TimeSeries:
    """Lines over time. `exemplars` shows single requests of histograms, with their traces."""
    panel = (
        TimeSeries()
        .title(title)
        .description(description)
        .datasource(PROMETHEUS)
        .height(HEIGHT)
        .span(width)
        .unit(unit)
        .fill_opacity(60 if stacked else 10)
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
        )
        .tooltip(
            common.VizTooltipOptions()
            .mode(TooltipDisplayMode.MULTI)
            .sort(SortOrder.DESCENDING)
            .hide_zeros(True)
        )
    )
    if logarithmic:
        panel = panel.scale_distribution(
            common.ScaleDistributionConfig().type(ScaleDistribution.LOG).log(10)
        )
    else:
        panel = panel.min(0)
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    if highest is not None:
        panel = panel.max(highest)
    if link:
        panel = panel.data_links([dashboard.DashboardLink("Model").url(link)])
    if warn_above is not None:
        panel = panel.thresholds(_thresholds([(warn_above, "red")])).thresholds_style(
            common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED)
        )
    for number, (expression, legend) in enumerate(queries):
        target = _query(expression, number).range().legend_format(legend)
        panel = panel.with_target(target.exemplar(exemplars))
    return panel


def number(
    title: str,
    description: str,
    expression: str,
    *,
    unit: str = units.Short,
    width: int = 4,
    thresholds: Sequence[tuple[float, str]] = (),
    decimals: int | None = None,
) -> stat.Panel:
    """The latest value, large, with its course behind it."""
    panel = (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(PROMETHEUS)
        .height(NUMBER_HEIGHT)
        .span(width)
        .unit(unit)
        .graph_mode(BigValueGraphMode.AREA)
        .color_mode(BigValueColorMode.VALUE)
        .thresholds(_thresholds(thresholds))
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .with_target(_query(expression, 0).range())
    )
    return panel if decimals is None else panel.decimals(decimals)


def heat(
    title: str,
    description: str,
    histogram: str,
    selector: str,
    *,
    unit: str,
    width: int = 8,
    exemplars: bool = False,
) -> heatmap.Panel:
    """How the values of a histogram are spread, over time."""
    return (
        heatmap.Panel()
        .title(title)
        .description(description)
        .datasource(PROMETHEUS)
        .height(HEIGHT)
        .span(width)
        .calculate(False)
        .color(
            heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64)
        )
        .y_axis(heatmap.YAxisConfig().unit(unit))
        .show_y_histogram()
        .with_target(
            _query(f"sum by (le) (increase({histogram}_bucket{{{selector}}}[$__rate_interval]))", 0)
            .range()
            .format(PromQueryFormat.HEATMAP)
            .legend_format("{{le}}")
            .exemplar(exemplars)
        )
    )


def rows(
    title: str, description: str, expression: str, columns: Sequence[str], *, width: int = 8
) -> table.Panel:
    """A table of the labels that the query's samples have."""
    return (
        table.Panel()
        .title(title)
        .description(description)
        .datasource(PROMETHEUS)
        .height(HEIGHT)
        .span(width)
        .with_target(_query(expression, 0).instant().format(PromQueryFormat.TABLE))
        .with_transformation(
            DataTransformerConfig(
                "organize",
                options={
                    "excludeByName": {"Time": True, "Value": True},
                    "indexByName": {name: place for place, name in enumerate(columns)},
                },
            )
        )
    )


def rate(counter: str, selector: str, *, by: str = "") -> str:
    """Per second, summed up."""
    return f"{_sum(by)} (rate({counter}{{{selector}}}[$__rate_interval]))"


def quantile(share: float, histogram: str, selector: str, *, by: str = "") -> str:
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, {rate(f'{histogram}_bucket', selector, by=labels)})"


def quantiles(histogram: str, selector: str) -> list[Query]:
    """The half, and those that are slower."""
    return [
        (quantile(share, histogram, selector), f"{share * 100:g} %") for share in (0.5, 0.9, 0.99)
    ]


def mean(histogram: str, selector: str, *, by: str = "") -> str:
    total, count = (rate(f"{histogram}_{part}", selector, by=by) for part in ("sum", "count"))
    return f"{total} / {count}"


def _sum(by: str) -> str:
    return f"sum by ({by})" if by else "sum"


def _query(expression: str, number: int) -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(expression).datasource(PROMETHEUS).ref_id("ABCDEFG"[number])


def _thresholds(steps: Sequence[tuple[float, str]]) -> dashboard.ThresholdsConfig:
    return dashboard.ThresholdsConfig().steps(
        [Threshold(None, "green"), *(Threshold(value, colour) for value, colour in steps)]
    )

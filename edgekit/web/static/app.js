// The page's one script: it joins the parts, and owns nothing itself.
import { keepAges } from "./ages.js";
import { openCharts } from "./charts.js";
import { openDialogs } from "./dialogs.js";
import { adopt } from "./frame.js";
import { Live } from "./live.js";
import { openTable } from "./table.js";

// an address that leads nowhere has nothing to follow
if (document.body.dataset.section) {
  adopt(document);
  const live = new Live();
  const charts = openCharts();
  live.onpoints = charts.append;
  keepAges(live);
  openDialogs();
  openTable(live);
  live.open(location.pathname + location.search);
}
